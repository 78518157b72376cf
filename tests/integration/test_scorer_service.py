"""`tersely scorer` as a real process between real streams: entry in, scored out; signals; faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tersely.config.schema import Recipe
from tersely.node.heartbeat import read_nodes
from tersely.node.servicer import NodeServicer
from tersely.queue import QuarantineReader, RunKeys, WorkStream
from tersely.rpc.client import call, dial
from tersely.rpc.server import GrpcServer
from tersely.types import GroupId, RunId
from tersely.v1 import common_pb2, group_pb2, scoring_pb2, scoring_pb2_grpc

RUN = RunId("r-scorer")
KEYS = RunKeys(RUN)
STOP = 2
PATIENCE_SECONDS = 30.0
Start = Callable[..., subprocess.Popen[str]]


def until(condition: Callable[[], Any]) -> Any:
    """Waits for something true and gives it back."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("waited in vain")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `tersely scorer ARGS`; its log goes to `scorer.log`."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        with (tmp_path / "scorer.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tersely.cli", "scorer", *arguments],
                stdout=log,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def trainer(valkey_client: redis.Redis, valkey_url: str) -> Iterator[Callable[[dict[str, Any]], str]]:
    """Lets scorers join: gives the address of a NodeService with such a recipe."""
    servers: list[GrpcServer] = []

    def serve(recipe: dict[str, Any]) -> str:
        settings = Recipe.model_validate({"queue": {"lease_seconds": 2.0}, **recipe})
        server = GrpcServer()
        server.add(NodeServicer(RUN, settings.model_dump_json(), valkey_url, incarnation=1).register)
        servers.append(server)
        return server.start()

    yield serve
    for server in servers:
        server.stop(0)


def stream(client: redis.Redis, key: str, group: str) -> WorkStream:
    made = WorkStream(client, key, group, "test", lease_seconds=60, quarantine_key=KEYS.quarantine)
    made.create()
    return made


def group(name: str, purpose: common_pb2.GroupPurpose.ValueType = common_pb2.GROUP_PURPOSE_TRAINING) -> bytes:
    prompt = group_pb2.PromptGroup(
        run_id=RUN,
        group_id=name,
        issue_number=7,
        purpose=purpose,
        group_size=2,
        stop_token_ids=[STOP],
        target_tokens=4,
        reference="a short summary",
    )
    made = group_pb2.CompletionGroup(prompt=prompt, rollout_node_id="rollout-x")
    made.completions.add(
        sample_index=0, token_ids=[9, 9, 9, 9, STOP], finish_reason=common_pb2.FINISH_REASON_STOP, text="a summary"
    )
    made.completions.add(
        sample_index=1, token_ids=[9, 9], finish_reason=common_pb2.FINISH_REASON_LENGTH, text="🙂 краткий"
    )
    return made.SerializeToString()


def values(scored: group_pb2.ScoredGroup) -> list[list[tuple[str, float]]]:
    return [[(v.name, round(v.value, 6)) for v in row.rewards] for row in scored.rewards]


def test_groups_are_scored_in_the_recipes_order_and_sigterm_ends_in_good_order(
    start: Start, trainer: Callable[[dict[str, Any]], str], valkey_client: redis.Redis
) -> None:
    address = trainer({"rewards": {"rouge_l": {"weight": 0.5}, "length": {"scale": "raw"}}})
    completions = stream(valkey_client, KEYS.completions, "scorer")
    scored = stream(valkey_client, KEYS.scored, "trainer")
    completions.add(GroupId("g1"), group("g1"))
    process = start("--trainer", address)

    (lease,) = until(lambda: scored.lease(1, 0))
    answer = group_pb2.ScoredGroup.FromString(lease.payload)
    assert lease.group_id == "g1"
    assert answer.group.SerializeToString() == group("g1")
    assert values(answer) == [[("rouge_l", 0.8), ("length", 0.0)], [("rouge_l", 0.0), ("length", -2.0)]]
    assert answer.scorer_node_id.startswith("scorer-")
    (beat,) = until(lambda: [n for n in read_nodes(valkey_client, KEYS) if n.groups_finished == 1])
    assert (beat.pid, beat.state) == (process.pid, "waiting")

    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert completions.depth().total == 0
    assert read_nodes(valkey_client, KEYS) == []


def test_evaluation_groups_also_get_length_and_rouge_l(
    start: Start, trainer: Callable[[dict[str, Any]], str], valkey_client: redis.Redis
) -> None:
    address = trainer({})
    completions = stream(valkey_client, KEYS.completions, "scorer")
    scored = stream(valkey_client, KEYS.scored, "trainer")
    completions.add(GroupId("train"), group("train"))
    completions.add(GroupId("eval"), group("eval", common_pb2.GROUP_PURPOSE_EVALUATION))
    start("--trainer", address)
    leases = until(lambda: scored.depth().total == 2 and scored.lease(2, 0))
    trained, evaluated = (values(group_pb2.ScoredGroup.FromString(lease.payload)) for lease in leases)
    assert trained == [[("length", 0.0)], [("length", -0.5)]]
    assert evaluated == [[("length", 0.0), ("rouge_l", 0.8)], [("length", -0.5), ("rouge_l", 0.0)]]


def test_an_unreadable_entry_is_quarantined_after_its_strikes_and_the_rest_goes_on(
    start: Start, trainer: Callable[[dict[str, Any]], str], valkey_client: redis.Redis
) -> None:
    address = trainer({})
    completions = stream(valkey_client, KEYS.completions, "scorer")
    scored = stream(valkey_client, KEYS.scored, "trainer")
    completions.add(GroupId("bad"), b"\xff\xff")
    completions.add(GroupId("good"), group("good"))
    process = start("--trainer", address)
    (bad,) = until(QuarantineReader(valkey_client, KEYS.quarantine).read)
    assert (bad.group_id, bad.stage, bad.strikes, bad.entry) == ("bad", "completions", 3, b"\xff\xff")
    assert bad.error_kind == "malformed_group"
    (lease,) = until(lambda: scored.lease(1, 0))
    assert lease.group_id == "good"
    assert process.poll() is None


def test_a_group_sent_twice_is_scored_alike_twice(
    start: Start, trainer: Callable[[dict[str, Any]], str], valkey_client: redis.Redis
) -> None:
    address = trainer({"rewards": {"length": {}, "rouge_l": {}}})
    completions = stream(valkey_client, KEYS.completions, "scorer")
    scored = stream(valkey_client, KEYS.scored, "trainer")
    for _ in range(2):
        completions.add(GroupId("g"), group("g"))
    start("--trainer", address)
    first, second = until(lambda: scored.depth().total == 2 and scored.lease(2, 0))
    assert values(group_pb2.ScoredGroup.FromString(first.payload)) == values(
        group_pb2.ScoredGroup.FromString(second.payload)
    )
    assert completions.depth().total == 0


def test_an_expired_lease_of_another_scorer_is_taken_over(
    start: Start, trainer: Callable[[dict[str, Any]], str], valkey_client: redis.Redis
) -> None:
    address = trainer({"queue": {"lease_seconds": 0.5}})
    completions = stream(valkey_client, KEYS.completions, "scorer")
    scored = stream(valkey_client, KEYS.scored, "trainer")
    completions.add(GroupId("g"), group("g"))
    assert len(completions.lease(1, 0)) == 1  # a consumer that never comes back
    start("--trainer", address)
    (lease,) = until(lambda: scored.lease(1, 0))
    assert lease.group_id == "g"


def test_sigterm_amid_work_leaves_each_group_waiting_or_scored_and_none_leased(
    start: Start, trainer: Callable[[dict[str, Any]], str], valkey_client: redis.Redis
) -> None:
    address = trainer({})
    completions = stream(valkey_client, KEYS.completions, "scorer")
    scored = stream(valkey_client, KEYS.scored, "trainer")
    names = {f"g{n}" for n in range(2000)}
    for name in names:
        completions.add(GroupId(name), group(name))
    process = start("--trainer", address)
    until(lambda: scored.depth().total > 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    done, left = scored.lease(len(names), 0), completions.lease(len(names), 0)
    assert left, "it ended before the signal: nothing was tested"
    assert completions.depth().leased == len(left)
    assert sorted(lease.group_id for lease in done + left) == sorted(names)
    assert {lease.strikes for lease in left} == {0}


@pytest.mark.parametrize(
    ("rewards", "code", "said"),
    [
        ({"rogue_l": {}}, 80, "Did you mean rouge_l?"),
        ({"length": {"scal": "raw"}}, 12, "Did you mean scale?"),
    ],
    ids=["unknown reward", "unknown option"],
)
def test_rewards_that_cant_be_set_up_stop_the_process_before_it_leases(
    start: Start,
    trainer: Callable[[dict[str, Any]], str],
    valkey_client: redis.Redis,
    tmp_path: Path,
    rewards: dict[str, Any],
    code: int,
    said: str,
) -> None:
    address = trainer({"rewards": rewards})
    completions = stream(valkey_client, KEYS.completions, "scorer")
    completions.add(GroupId("g"), group("g"))
    assert start("--trainer", address).wait(PATIENCE_SECONDS) == code
    text = (tmp_path / "scorer.log").read_text()
    assert said in text
    assert "Traceback" not in text
    assert (completions.depth().waiting, completions.depth().leased) == (1, 0)


def test_without_a_trainer_it_serves_scores_on_its_port(start: Start, tmp_path: Path) -> None:
    process = start("--log-json", "--set", "rewards.length.scale=raw")

    def listening() -> str | None:
        lines = (tmp_path / "scorer.log").read_text().splitlines()
        return next((line.split('"address": "')[1].split('"')[0] for line in lines if '"ready"' in line), None)

    address = until(listening)
    item = scoring_pb2.ScoreItem(id="x", summary="s", summary_tokens=3, target_tokens=5)
    with dial(address) as channel:
        method = scoring_pb2_grpc.ScoringServiceStub(channel).Score
        (result,) = call(method, scoring_pb2.ScoreRequest(items=[item]), address=address).results
    assert [(v.name, v.value) for v in result.rewards] == [("length", -2.0)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
