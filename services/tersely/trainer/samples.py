"""From scored groups to what others read: the learner's groups, rows of samples.jsonl, figures of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tersely.evaluation import WITHIN_TOKENS
from tersely.trainer.learner import TrainingGroup
from tersely.trainer.reward_figures import deviation, reward_correlation, reward_parts
from tersely.trainer.text_figures import text_figures
from tersely.types import GroupId, PolicyVersion
from tersely.v1 import common_pb2, group_pb2


def reward_columns(scored: group_pb2.ScoredGroup) -> dict[str, tuple[float | None, ...]]:
    """Per reward, one value per completion; None where it could not be computed."""
    names = [value.name for value in scored.rewards[0].rewards] if scored.rewards else []
    return {
        name: tuple(row.rewards[i].value if row.rewards[i].HasField("value") else None for row in scored.rewards)
        for i, name in enumerate(names)
    }


def training_group(scored: group_pb2.ScoredGroup) -> TrainingGroup:
    """What the learner needs of a group: sampled ids as they were sampled."""
    group = scored.group
    return TrainingGroup(
        group_id=GroupId(group.prompt.group_id),
        prompt_ids=tuple(group.prompt.prompt_token_ids),
        completion_ids=tuple(tuple(completion.token_ids) for completion in group.completions),
        behaviour_logprobs=tuple(tuple(completion.behaviour_logprobs) for completion in group.completions),
        rewards=reward_columns(scored),
    )


def oldest_version(scored: group_pb2.ScoredGroup) -> PolicyVersion:
    """The oldest policy version that sampled any token of the group."""
    return PolicyVersion(
        min(span.weights.policy_version for completion in scored.group.completions for span in completion.version_spans)
    )


def length_tokens(completion: group_pb2.Completion) -> int:
    """Length of a completion: sampled ids without the stop token."""
    return len(completion.token_ids) - int(stopped(completion))


def stopped(completion: group_pb2.Completion) -> bool:
    """Whether the completion ended by itself."""
    return completion.finish_reason == common_pb2.FINISH_REASON_STOP


def is_within(completion: group_pb2.Completion, target_tokens: int) -> bool:
    """Whether it stopped by itself within +-5 tokens of the target; a truncated completion never counts."""
    return stopped(completion) and abs(length_tokens(completion) - target_tokens) <= WITHIN_TOKENS


def sample_rows(
    scored: group_pb2.ScoredGroup, *, step: int, outcome: str, advantages: Sequence[float | None] | None
) -> Iterator[dict[str, Any]]:
    """Rows for samples.jsonl, one per completion."""
    prompt, columns = scored.group.prompt, reward_columns(scored)
    for index, completion in enumerate(scored.group.completions):
        yield {
            "step": step,
            "outcome": outcome,
            "group_id": prompt.group_id,
            "issue_number": prompt.issue_number,
            "prompt_id": prompt.prompt_id,
            "sample_index": index,
            "policy_version": completion.version_spans[0].weights.policy_version,
            "target_tokens": prompt.target_tokens,
            "tokens": length_tokens(completion),
            "stopped": stopped(completion),
            "rewards": {name: values[index] for name, values in columns.items()},
            "absent_reasons": {
                value.name: value.absent_reason for value in scored.rewards[index].rewards if value.absent_reason
            },
            "advantage": None if advantages is None else advantages[index],
            "text": completion.text,
            "document": prompt.document,
            "reference": prompt.reference,
            "document_tokens_cut": prompt.document_tokens_cut,
            "rollout_node_id": scored.group.rollout_node_id,
            "scorer_node_id": scored.scorer_node_id,
        }


def batch_figures(batch: Sequence[group_pb2.ScoredGroup]) -> dict[str, Any]:
    """Figures of a batch that need no model: rewards, lengths, how completions ended, what they say."""
    pairs = [
        (group.group.prompt.target_tokens, completion) for group in batch for completion in group.group.completions
    ]
    lengths = [length_tokens(completion) for _, completion in pairs]
    count = len(pairs)
    columns = [reward_columns(group) for group in batch]
    parts = reward_parts(columns)
    spreads = [deviation([length_tokens(completion) for completion in group.group.completions]) for group in batch]
    return {
        "rewards": {name: part["mean"] for name, part in parts.items()},
        "reward_parts": parts,
        "reward_correlation": reward_correlation(columns),
        "mean_tokens": sum(lengths) / count,
        "mean_abs_length_error": sum(abs(n - target) for n, (target, _) in zip(lengths, pairs, strict=True)) / count,
        "within_5": sum(is_within(completion, target) for target, completion in pairs) / count,
        "length_std": sum(spreads) / len(spreads),
        "truncated": sum(not stopped(completion) for _, completion in pairs) / count,
        "mean_target_tokens": sum(target for target, _ in pairs) / count,
        "length_histogram": sorted(Counter(lengths).items()),
        "length_error_histogram": sorted(
            Counter(n - target for n, (target, _) in zip(lengths, pairs, strict=True)).items()
        ),
        "completions": count,
        **text_figures(_texts_by_prompt(batch)),
    }


def _texts_by_prompt(batch: Sequence[group_pb2.ScoredGroup]) -> list[list[str]]:
    texts: dict[str, list[str]] = {}
    for group in batch:
        texts.setdefault(group.group.prompt.prompt_id, []).extend(c.text for c in group.group.completions)
    return list(texts.values())
