"""A collector on a real server, and hands to play worker and scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from tersely.config import Recipe
from tersely.data.prompts import PreparedPrompt
from tersely.queue import WorkStream
from tersely.telemetry.events import EventLog
from tersely.trainer.books import Books, balanced
from tersely.trainer.collector import Collector
from tersely.trainer.evaluation import EvaluationDesk
from tersely.trainer.issuing import Issuer
from tersely.trainer.ledger import Ledger, Outcome
from tersely.trainer.ring import Arrival, Ring
from tersely.trainer.wal import WriteAheadLog
from tersely.types import GroupId, PolicyVersion, RunId, WeightsLabel
from tersely.v1 import common_pb2, group_pb2

STOP = 9


V0 = WeightsLabel(PolicyVersion(0), "aa")


V1 = WeightsLabel(PolicyVersion(1), "bb")


V2 = WeightsLabel(PolicyVersion(2), "cc")


class Prompts:
    """Prompts that need no tokenizer."""

    def __len__(self) -> int:
        return 50

    def prompt_id(self, index: int) -> str:
        return f"p{index}"

    def prompt(self, index: int, target_tokens: int) -> PreparedPrompt:
        return PreparedPrompt(f"p{index}", (1, 2), "doc", f"ref of {target_tokens}", target_tokens, 0)


def scored_group(
    prompt: group_pb2.PromptGroup, rewards: tuple[float | None, ...], label: WeightsLabel, **others: tuple[float, ...]
) -> group_pb2.ScoredGroup:
    """As it comes from a scorer; rewards are those named length, others have their names."""
    scored = group_pb2.ScoredGroup(group=group_pb2.CompletionGroup(prompt=prompt))
    for index, reward in enumerate(rewards):
        completion = scored.group.completions.add(
            sample_index=index,
            token_ids=[5, STOP],
            behaviour_logprobs=[-1.0, -2.0],
            finish_reason=common_pb2.FINISH_REASON_STOP,
        )
        completion.version_spans.add(weights=label.to_proto(), first_token=0, token_count=2)
        row = scored.rewards.add()
        row.rewards.add(name="length", value=reward)
        for name, values in others.items():
            row.rewards.add(name=name, value=values[index])
    return scored


def _taken_from(stream: WorkStream) -> list[group_pb2.PromptGroup]:
    leases = stream.lease(100, 0)
    stream.ack(leases)
    return [group_pb2.PromptGroup.FromString(lease.payload) for lease in leases]


class Bench:
    """A collector with its surroundings, and hands to play worker and scorer."""

    def __init__(self, client: redis.Redis, folder: Path, sections: dict[str, Any], **run: int) -> None:
        self.recipe = Recipe.model_validate({"run": {"groups_per_step": 2, "group_size": 2, **run}, **sections})
        run_id = RunId("r-test")
        self.ledger = Ledger()
        self.ring = Ring(client, run_id, self.recipe.queue)
        self.ring.create()
        self.events_path = folder / "events.jsonl"
        self.events = EventLog(self.events_path)
        self.wal = WriteAheadLog(folder / "run.wal")
        self.desk = EvaluationDesk(self.ring)
        self.dropped: list[tuple[str, Outcome]] = []
        self.collector = Collector(
            self.recipe,
            Issuer(run_id, 1, self.recipe, Prompts(), (STOP,)),
            self.ledger,
            self.ring,
            self.wal,
            self.events,
            desk=self.desk,
            on_dropped=lambda arrival, outcome: self.dropped.append((arrival.group.group.prompt.group_id, outcome)),
        )
        self.collector.begin_step(V0, 1)

    def close(self) -> None:
        self.events.close()
        self.wal.close()

    def leased_prompts(self) -> list[group_pb2.PromptGroup]:
        """Takes all waiting training groups, as a worker would."""
        return _taken_from(self.ring.prompts)

    def leased_held_out(self) -> list[group_pb2.PromptGroup]:
        """Takes all waiting held-out prompts, as a worker would."""
        return _taken_from(self.ring.evaluation_prompts)

    def answer(
        self,
        prompt: group_pb2.PromptGroup,
        rewards: tuple[float | None, ...] = (0.0, 1.0),
        label: WeightsLabel = V0,
        **others: tuple[float, ...],
    ) -> None:
        """Pushes a scored group, as the scorer would; rewards are those named length, others have their names."""
        scored = scored_group(prompt, rewards, label, **others)
        self.ring.scored.add(GroupId(prompt.group_id), scored.SerializeToString())

    def batch(self) -> list[Arrival] | None:
        self.collector.poll(0)
        return self.collector.batch()

    def books_balance(self) -> bool:
        return balanced(Books(self.ledger, self.ring, self.events).read())


@pytest.fixture
def make_bench(valkey_client: redis.Redis, tmp_path: Path):
    benches: list[Bench] = []

    def make(sections: dict[str, Any] | None = None, **run: int) -> Bench:
        benches.append(Bench(valkey_client, tmp_path, sections or {}, **run))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def numbers(batch: list[Arrival] | None) -> list[int]:
    assert batch is not None
    return [arrival.group.group.prompt.issue_number for arrival in batch]
