"""The benchmark measures what it says: equal gradients, exact lengths, ratios the right way up."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch

from tersely.cli.main import app
from tersely.errors import PackageMissing, ServiceFailed
from tersely.models.tiny import make_tiny_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.trainer.benching import tool, turns
from tersely.trainer.benching.learning import LearnerBench, Timing, relative_difference
from tersely.trainer.benching.memory import peak_memory_bytes
from tersely.trainer.benching.prompts import BenchPrompt
from tersely.trainer.benching.shapes import GRID, HEADLINE, LARGE, Shape, random_batch
from tersely.trainer.benching.turns import Turns, find_peer
from tersely.trainer.benching.whole_step import run_job


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny-chat")


def prompts(tokenizer: PolicyTokenizer, count: int) -> list[BenchPrompt]:
    contents = [f"Summarize this: a text about the number {index}." for index in range(count)]
    return [
        BenchPrompt(text, tuple(tokenizer.encode_chat([{"role": "user", "content": text}])), "A number.")
        for text in contents
    ]


def test_all_ways_give_the_same_gradient(model: Path) -> None:
    told: list[str] = []
    bench = LearnerBench(model)
    # More completions than fit a padded micro-batch.
    timing = bench.measure(Shape(24, 6, 10), ("plain", "padded", "shared"), 2, compare=True, progress=told.append)
    assert {way: len(seconds) for way, seconds in timing.seconds.items()} == {"plain": 2, "padded": 2, "shared": 2}
    assert 0 < timing.differences["plain"] < 1e-5
    assert 0 <= timing.differences["padded"] < 1e-5
    assert told[0].startswith("P24C6G10 turn 1/2: plain ")


def test_a_wrong_gradient_would_be_seen() -> None:
    one, other = [torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])]
    assert relative_difference(one, one) == 0
    assert relative_difference(one, other) == pytest.approx(0.1)


def test_a_ratio_is_the_median_over_turns_of_slow_over_fast() -> None:
    timing = Timing({"padded": [6.0, 90.0, 8.0], "shared": [2.0, 2.0, 2.0]})
    assert timing.ratio("padded") == 4.0
    assert timing.ratio("plain") is None


def test_shapes_have_the_names_that_the_results_are_keyed_by() -> None:
    assert [shape.name for shape in GRID] == ["P256C64G8", "P256C64G16", "P512C64G8", "P512C64G16"]
    assert Shape.parse("P256C64G8") == HEADLINE
    with pytest.raises(ValueError, match="no shape"):
        Shape.parse("P256C64")
    batch = random_batch(Shape(5, 3, 4), vocabulary=7)
    assert [tuple(part.shape) for part in batch] == [(2, 5), (2, 4, 3), (2, 4)]
    assert torch.equal(batch.completions, random_batch(Shape(5, 3, 4), vocabulary=7).completions)


def test_our_step_trains_on_completions_of_exactly_the_limit(model: Path) -> None:
    made = prompts(PolicyTokenizer.from_folder(model), 4)
    job = {
        "model_folder": str(model),
        "threads": 1,
        "steps": 2,
        "groups": 2,
        "group": 4,
        "completion": 12,
        "prompts": [{"content": p.content, "token_ids": p.token_ids, "reference": p.reference} for p in made],
    }
    result = run_job(job)
    assert len(result["step_seconds"]) == len(result["phases"]) == 2
    assert {"rollout", "score", "learn", "publish", "hand_over"} < result["phases"][0].keys()
    assert result["step_seconds"][0] >= result["phases"][0]["rollout"] + result["phases"][0]["learn"] - 0.01
    assert 0 < result["peak_memory_bytes"] <= peak_memory_bytes()


def test_a_turn_is_a_process_of_its_own_with_the_first_step_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "bench_prompts", prompts)
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, os, sys\n"
        "job = json.load(open(sys.argv[1]))\n"
        "seconds = [99.0] + [2.0] * (job['steps'] - 1)\n"
        "result = {'step_seconds': seconds, 'completion_tokens': [int(os.environ.get('MADE', 64))]}\n"
        "result['peak_memory_bytes'] = 5; result['spin'] = os.environ.get('GOMP_SPINCOUNT')\n"
        "json.dump(result, open(sys.argv[2], 'w'))\n"
        "sys.exit('MADE' in os.environ and os.environ['MADE'] == '0' and 'it broke' or 0)\n"
    )
    monkeypatch.setattr(turns, "_DRIVER", script)
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    told: list[str] = []
    one = Turns(model, 1, 3, told.append)
    result = one.peer(0, Path(sys.executable))
    assert (result["seconds"], result["spin"]) == (2.0, "77")
    assert result["load_before"] >= 0
    assert told == ["turn 1: trl 2.00 s a step, peak memory 0.00 GiB"]
    monkeypatch.setenv("MADE", "63")
    with pytest.raises(ServiceFailed, match=r"\[63\] tokens"):
        one.peer(0, Path(sys.executable))
    monkeypatch.setenv("MADE", "0")
    with pytest.raises(ServiceFailed, match="it broke"):
        one.peer(0, Path(sys.executable))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_both_sides_wait_alike_and_as_the_user_says(
    model: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(turns, "bench_prompts", prompts)
    seen: list[dict[str, str]] = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> Any:
        seen.append({name: env[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in env})
        result = {"step_seconds": [9.0, 2.0], "completion_tokens": [64], "peak_memory_bytes": 5}
        Path(command[-1]).write_text(json.dumps(result))
        return turns.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(turns.subprocess, "run", run)
    one = Turns(model, 1, 1, lambda line: None)
    one.ours(0)
    one.peer(0, Path(sys.executable))
    assert seen == [expected, expected]


@pytest.mark.parametrize(("load", "warned"), [(0.5, False), (0.9, True)])
def test_a_machine_that_is_at_work_is_warned_of(
    model: Path, monkeypatch: pytest.MonkeyPatch, load: float, warned: bool
) -> None:
    monkeypatch.setattr(tool.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(tool, "Turns", FakeTurns)
    monkeypatch.setattr(tool, "_learner", lambda *_: {HEADLINE.name: Timing({"shared": [1.0]}, {"padded": 0.0})})
    told: list[str] = []
    found = tool.run_bench_learner(quick=True, model=str(model), turns=1, threads=1, progress=told.append)
    assert found["details"]["load_before"] == load
    assert found["details"]["environment"]
    assert any("load average" in line for line in told) == warned


def test_without_the_peers_environment_the_way_to_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    with pytest.raises(PackageMissing, match="make bench"):
        app(["bench", "learner", "--json"], standalone_mode=False)
    python = tmp_path / ".venv-trl" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert find_peer() == python


class FakeTurns:
    """Ours takes 2 s and 3 GB, the peer 10 s and 6 GB."""

    prompt_tokens = (250,)

    def __init__(self, *_: Any) -> None: ...

    def ours(self, turn: int) -> dict[str, Any]:
        return {"seconds": 2.0, "peak_memory_bytes": 3e9}

    def peer(self, turn: int, python: Path) -> dict[str, Any]:
        return {"seconds": 10.0, "peak_memory_bytes": 6e9}


@pytest.mark.parametrize("quick", [True, False])
def test_the_answer_has_the_promised_keys(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick: bool
) -> None:
    small = {HEADLINE: Shape(16, 4, 4), LARGE: Shape(24, 4, 4), GRID[1]: Shape(16, 4, 8), GRID[2]: Shape(24, 4, 8)}
    real = LearnerBench.measure
    monkeypatch.setattr(LearnerBench, "measure", lambda self, shape, *a, **k: real(self, small[shape], *a, **k))
    monkeypatch.setattr(tool, "Turns", FakeTurns)
    monkeypatch.setattr(tool, "find_peer", lambda: Path(sys.executable))
    options = ["--quick"] if quick else []
    app(["bench", "learner", "--json", "--model", str(model), "--threads", "1", *options], standalone_mode=False)
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert list(found) == [
        "shared_over_padded",
        "gradient_difference",
        "over_trl",
        "peak_memory_over_trl",
        "details",
    ]
    names = [HEADLINE.name, LARGE.name] if quick else [shape.name for shape in GRID]
    assert list(found["shared_over_padded"]) == names
    assert 0 <= found["gradient_difference"] < 1e-5
    assert (found["over_trl"], found["peak_memory_over_trl"]) == ((None, None) if quick else (5.0, 0.5))
    assert found["details"]["whole_step"]["completions_per_second"] == {"ours": 8.0, "trl": None if quick else 1.6}
    assert "turn 1/" in shown.err
    app(["bench", "learner", "--model", str(model), "--threads", "1", *options], standalone_mode=False)
    assert "whole step: 8.0 completions/s" in capsys.readouterr().out
