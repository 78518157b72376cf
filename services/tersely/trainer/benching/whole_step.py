"""Our whole GRPO step, timed by phase, in a process of its own: sample, score, learn, publish, hand the weights over.

usage: python -m tersely.trainer.benching.whole_step JOB.json RESULT.json

The parts are those of a synchronous run, engine and learner in one process as in the peer: the torch engine with
bit-exact groups, the rewards `length` and `rouge_l`, the learner with fp32 masters, the snapshot with its hashes, and
the checkpoint channel on loopback. There is no queue and no log. Completions have no stop token, so that each is
exactly as long as the limit, as the peer's are.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tersely.config.learner import LearnerSection
from tersely.grpo.seeds import group_seed
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rpc.client import dial
from tersely.rpc.server import GrpcServer
from tersely.trainer.benching.memory import peak_memory_bytes
from tersely.trainer.learner import Learner, TrainingGroup
from tersely.types import GroupId
from tersely.v1 import common_pb2, group_pb2
from tersely.weights.client import WeightsClient
from tersely.weights.servicer import CheckpointServicer
from tersely.weights.store import SnapshotStore

_REWARDS = {"length": 1.0, "rouge_l": 1.0}
_RUN = "r-bench"


@dataclass(frozen=True, slots=True)
class _EngineSettings:
    """What the torch engine's constructor reads."""

    device: str
    threads: int
    batch_sequences: int
    batch_tokens: int | None = None
    lookup_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Completion:
    """What a reward reads of a completion."""

    text: str
    token_count: int
    stopped: bool
    target_tokens: int
    reference: str
    document: str
    group_key: str


class WholeStep:
    """Everything that a step needs, ready.

    Args:
        job: `model_folder`, `threads`, `group`, `completion`, and what `run_job` reads.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        folder = Path(job["model_folder"])
        self._tokenizer = PolicyTokenizer.from_folder(folder)
        self._rewards = {name: _entry("tersely.rewards", name)() for name in _REWARDS}
        self._engine = _entry("tersely.engines", "torch")(_EngineSettings("cpu", job["threads"], 16))
        self._learner = Learner(
            folder,
            LearnerSection(device="cpu", threads=job["threads"], learning_rate=1e-5),
            temperature=1.0,
            reward_weights=lambda _: _REWARDS,
            total_steps=job["steps"],
            max_completion_tokens=job["completion"],
        )
        self._store = SnapshotStore(_RUN, folder, self._tokenizer.stop_token_ids, 1 << 20, incarnation=1)
        self._server = GrpcServer()
        servicer = CheckpointServicer(self._store)
        self._server.add(servicer.register, servicer.close)
        self._channel = dial(self._server.start())
        self._client = WeightsClient(self._channel, _RUN, "rollout-bench")
        self._label = self._store.publish(0, self._learner.published())
        self._engine.load(folder, self._label, self._client.fetch(self._label))

    def close(self) -> None:
        """Ends the checkpoint channel."""
        self._client.close()
        self._channel.close()
        self._server.stop()

    def step(self, number: int, prompts: Sequence[dict[str, Any]]) -> dict[str, float]:
        """One step on one prompt per group; seconds per phase, and the learner's own as `learn.forward` and so on."""
        seconds: dict[str, float] = {}
        with _clock(seconds, "rollout"):
            requests = [self._request(number, index, prompt) for index, prompt in enumerate(prompts)]
            generated = [group for request in requests for group in self._sample(request)]
        with _clock(seconds, "score"):
            groups = [self._score(group, prompt) for group, prompt in zip(generated, prompts, strict=True)]
        with _clock(seconds, "learn"):
            health = self._learner.train(groups, number)
        with _clock(seconds, "publish"):
            self._label = self._store.publish(number, self._learner.published())
        with _clock(seconds, "hand_over"):
            self._engine.swap(self._label, self._client.fetch(self._label))
        lengths = {len(ids) for group in groups for ids in group.completion_ids}
        if lengths != {self._job["completion"]}:
            raise ValueError(f"completions of {sorted(lengths)} tokens, not {self._job['completion']}")
        return {**seconds, **{f"learn.{phase}": spent for phase, spent in health.seconds.items()}}

    def _sample(self, request: group_pb2.PromptGroup) -> list[Any]:
        self._engine.admit(request)
        done: list[Any] = []
        while self._engine.running:
            done += self._engine.step()
        return done

    def _request(self, step: int, index: int, prompt: dict[str, Any]) -> group_pb2.PromptGroup:
        job = self._job
        request = group_pb2.PromptGroup(
            run_id=_RUN,
            group_id=f"g-{step}-{index}",
            prompt_id=str(index),
            prompt_token_ids=prompt["token_ids"],
            group_size=job["group"],
            target_tokens=job["completion"],
            reference=prompt["reference"],
            purpose=common_pb2.GROUP_PURPOSE_TRAINING,
        )
        request.required_weights.CopyFrom(self._label.to_proto())
        request.sampling.temperature = 1.0
        request.sampling.max_completion_tokens = job["completion"]
        request.sampling.seed = group_seed(0, step, str(index))
        return request

    def _score(self, generated: Any, prompt: dict[str, Any]) -> TrainingGroup:
        request = generated.prompt
        inputs = [
            _Completion(
                text=self._tokenizer.decode(completion.token_ids),
                token_count=len(completion.token_ids),
                stopped=False,
                target_tokens=request.target_tokens,
                reference=prompt["reference"],
                document=prompt["content"],
                group_key=request.group_id,
            )
            for completion in generated.completions
        ]
        return TrainingGroup(
            group_id=GroupId(request.group_id),
            prompt_ids=tuple(request.prompt_token_ids),
            completion_ids=tuple(tuple(completion.token_ids) for completion in generated.completions),
            behaviour_logprobs=tuple(tuple(completion.behaviour_logprobs) for completion in generated.completions),
            rewards={name: tuple(reward.score(inputs)) for name, reward in self._rewards.items()},
        )


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains the steps of a job.

    Args:
        job: `model_folder`, `threads`, `steps`, `groups` per step, `group`, `completion` and `prompts` (content,
            token_ids, reference), which are gone through in order.
    """
    whole = WholeStep(job)
    try:
        phases = []
        for step in range(job["steps"]):
            first = step * job["groups"]
            phases.append(whole.step(step + 1, job["prompts"][first : first + job["groups"]]))
    finally:
        whole.close()
    return {
        "step_seconds": [round(sum(s for name, s in phase.items() if "." not in name), 3) for phase in phases],
        "phases": [{name: round(spent, 3) for name, spent in phase.items()} for phase in phases],
        "peak_memory_bytes": peak_memory_bytes(),
        "threads": job["threads"],
        "versions": {name: metadata.version(name) for name in ("tersely", "torch", "transformers")},
    }


def main() -> None:
    """Reads the job, does it, and writes the result."""
    job, result = (Path(argument) for argument in sys.argv[1:3])
    result.write_text(json.dumps(run_job(json.loads(job.read_text()))))


def _entry(group: str, name: str) -> Any:
    """Another service's class, by its entry point."""
    (found,) = metadata.entry_points(group=group, name=name)
    return found.load()


@contextmanager
def _clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - began


if __name__ == "__main__":
    main()
