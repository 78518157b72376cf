"""`tersely score` as people run it: real processes, a real server, and what gets killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

PATIENCE_SECONDS = 100.0
Start = Callable[..., subprocess.Popen[str]]


def until(condition: Callable[[], Any]) -> Any:
    """Waits for something true and gives it back."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError("waited in vain")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `tersely ARGS`; what it says goes to NAME.out and NAME.err."""
    running: list[subprocess.Popen[str]] = []

    def begin(name: str, *arguments: str) -> subprocess.Popen[str]:
        with (tmp_path / f"{name}.out").open("w") as out, (tmp_path / f"{name}.err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "tersely.cli", *arguments],
                stdout=out,
                stderr=err,
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
def source(tmp_path: Path) -> Path:
    """600 pairs whose ROUGE-L tells them apart."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "id": f"p{n}",
            "completion": " ".join(["cat"] * (n % 7 + 1) + ["mat 汉字 🙂"] * 20),
            "reference": "cat " * 40,
            "completion_tokens": n,
        }
        for n in range(600)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_output(path: Path) -> None:
    rows = rows_of(path)
    assert [row["id"] for row in rows] == [f"p{n}" for n in range(600)]
    by_kind = [{row["rewards"]["rouge_l"] for row in rows[kind::7]} for kind in range(7)]
    assert [len(values) for values in by_kind] == [1] * 7
    assert len(set.union(*by_kind)) == 7
    assert rows[10]["rewards"]["length"] == -0.9


def score_command(source: Path, output: Path, *more: str) -> list[str]:
    command = ["score", str(source), "--rewards", "rouge_l,length", "-o", str(output), "--json"]
    return [*command, "--target-tokens", "100", "--batch-rows", "5", *more]


@pytest.mark.timeout(300)
def test_one_of_two_scorers_is_killed_amid_a_batch_and_every_line_is_there_once_in_order(
    start: Start, source: Path, tmp_path: Path, valkey_client: redis.Redis, valkey_url: str
) -> None:
    scorers = [start(f"scorer{n}", "scorer", "--redis-url", valkey_url, "--log-json") for n in range(2)]

    def name_of(number: int) -> str | None:
        lines = (tmp_path / f"scorer{number}.out").read_text() + (tmp_path / f"scorer{number}.err").read_text()
        ready = [json.loads(line) for line in lines.splitlines() if '"ready"' in line]
        return ready[0]["worker"] if ready else None

    names = [until(partial(name_of, number)) for number in range(2)]
    output = tmp_path / "out.jsonl"
    client = start("score", *score_command(source, output, "--redis", valkey_url))

    def stopped_at_work() -> Any:
        """A scorer held still with a batch in its hands."""
        hand = f"rq:worker:{names[1]}:executions"
        if not valkey_client.scard(hand):
            return None
        scorers[1].send_signal(signal.SIGSTOP)
        until(lambda: psutil.Process(scorers[1].pid).status() == psutil.STATUS_STOPPED)
        if held := valkey_client.smembers(hand):
            return held
        scorers[1].send_signal(signal.SIGCONT)
        return None

    held = until(stopped_at_work)
    scorers[1].kill()
    # As if the seconds of its lease had gone by.
    for entry in held:
        valkey_client.zadd("rq:wip:score", {entry: 1}, xx=True)
        valkey_client.delete(f"rq:execution:{entry.decode()}")
    assert client.wait(PATIENCE_SECONDS) == 0
    check_output(output)
    summary = json.loads((tmp_path / "score.out").read_text())
    assert (summary["rows_written"], summary["complete"]) == (600, True)
    assert summary["pairs_per_second"] > 0
    assert names[0] in summary["scorers"]
    scorers[0].send_signal(signal.SIGTERM)
    assert scorers[0].wait(PATIENCE_SECONDS) == 0
    left: Any = valkey_client.keys("*")
    assert {key.decode() for key in left} - {"rq:queues", *(f"rq:worker:{name}" for name in names)} <= {
        "rq:workers",
        "rq:workers:score",
        f"rq:worker:{names[1]}:executions",
    }


@pytest.mark.timeout(300)
def test_killed_then_interrupted_then_left_alone_the_same_command_ends_with_every_line_once(
    start: Start, source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    command = score_command(source, output, "--workers", "1")
    part = output.with_name("out.jsonl.work") / "rows.jsonl"

    def more_than(rows: int) -> Callable[[], bool]:
        return lambda: part.exists() and part.read_bytes().count(b"\n") > rows

    first = start("first", *command)
    until(more_than(0))
    children = psutil.Process(first.pid).children(recursive=True)
    assert {child.name().split("-")[0] for child in children} >= {"valkey"}
    first.kill()
    first.wait()
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    kept = part.read_bytes().count(b"\n")

    second = start("second", *command)
    until(more_than(kept + 10))
    # Held still, so that it can't be done before the client hears of it.
    scorer = next(c for c in psutil.Process(second.pid).children() if "scorer" in c.cmdline())
    scorer.suspend()
    second.send_signal(signal.SIGINT)
    scorer.resume()
    assert second.wait(PATIENCE_SECONDS) == 130
    assert not output.exists()
    told = json.loads((tmp_path / "second.out").read_text())
    assert (told["complete"], told["rows_resumed"] >= kept) == (False, True)

    assert start("third", *command).wait(PATIENCE_SECONDS) == 0
    check_output(output)
    summary = json.loads((tmp_path / "third.out").read_text())
    assert summary["rows_resumed"] == told["rows_written"]
    assert summary["rewards"]["rouge_l"]["scored"] == 600
    assert not part.parent.exists()


def test_a_bad_line_ends_it_before_it_starts_anything(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": 1, "completion": "a"}\n{"id": 2, "summary": "b"}\n')
    output = tmp_path / "out.jsonl"
    assert start("bad", *score_command(path, output)).wait(PATIENCE_SECONDS) == 22
    said = (tmp_path / "bad.err").read_text()
    assert f"{path}:2: there is no field 'completion' (it has: id, summary)" in said
    assert "Traceback" not in said
    assert not output.exists()
    assert not output.with_name("out.jsonl.work").exists()


def test_a_reward_that_refuses_its_options_ends_it_with_the_scorers_words(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": 1, "completion": "a"}\n')
    output = tmp_path / "out.jsonl"
    arguments = ("score", str(path), "--rewards", "length", "-o", str(output), "--option", "length.scale=cubic")
    assert start("refused", *arguments).wait(PATIENCE_SECONDS) == 13
    assert "rewards.length.scale is 'cubic'" in (tmp_path / "refused.err").read_text()
    assert not output.with_name("out.jsonl.work").exists()
