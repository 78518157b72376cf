"""A batch as bytes for other ranks: the message of the write-ahead log, with the fields that a learner reads."""

from __future__ import annotations

from collections.abc import Sequence

from tersely.trainer.groups import TrainingGroup
from tersely.trainer.samples import training_group
from tersely.v1 import group_pb2, log_pb2


def batch_bytes(batch: Sequence[TrainingGroup], step: int) -> bytes:
    """A BatchFormed; log-probabilities are fp32 in it."""
    return log_pb2.BatchFormed(step=step, groups=[_scored(group) for group in batch]).SerializeToString()


def read_batch(data: bytes) -> list[TrainingGroup]:
    """The groups of a BatchFormed, in order."""
    return [training_group(scored) for scored in log_pb2.BatchFormed.FromString(data).groups]


def _scored(group: TrainingGroup) -> group_pb2.ScoredGroup:
    return group_pb2.ScoredGroup(
        group=group_pb2.CompletionGroup(
            prompt=group_pb2.PromptGroup(group_id=group.group_id, prompt_token_ids=group.prompt_ids),
            completions=[
                group_pb2.Completion(sample_index=index, token_ids=ids, behaviour_logprobs=logprobs)
                for index, (ids, logprobs) in enumerate(
                    zip(group.completion_ids, group.behaviour_logprobs, strict=True)
                )
            ],
        ),
        rewards=[
            group_pb2.CompletionRewards(
                rewards=[
                    group_pb2.RewardValue(name=name, value=values[index]) for name, values in group.rewards.items()
                ]
            )
            for index in range(len(group.completion_ids))
        ],
    )
