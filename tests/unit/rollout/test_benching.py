"""The benchmarks measure what they say: exact prompts, every token counted, ratios the right way up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tersely.data.records import Record
from tersely.errors import ServiceFailed
from tersely.models.tiny import make_tiny_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.benching import prompts, tool
from tersely.rollout.benching.child import Child
from tersely.rollout.benching.link import run_bench_link
from tersely.rollout.benching.prompts import exact_prompts, whole_prompts
from tersely.rollout.benching.sides import EngineSide, GenerateSide
from tersely.rollout.benching.swapping import swap_pauses
from tersely.weights.snapshot import Snapshot
from tersely.weights.versions import write_version

JOB: dict[str, Any] = {"prompts": [[3, 4, 5, 6], [7, 8, 9, 10]], "size": 3, "limit": 6, "stop": [], "greedy": False}
ECHO = """
from tersely.rollout.benching.child import serve
def work(job):
    print("a library says something")
    if job["value"] < 0:
        raise SystemExit("it can't be done")
    return {"twice": 2 * job["value"]}
serve(work)
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    text = "The quick brown fox jumps over the lazy dog, and a report about it says why. " * 6
    records = [Record(str(n), f"Number {n}. {text}", "A fox jumps.") for n in range(4)]
    monkeypatch.setattr(prompts, "load_records", lambda data, split: records)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny-chat")


@pytest.fixture(scope="module")
def versions(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three versions that differ in a few values."""
    from safetensors.torch import load_file

    folder, weights, made = tmp_path_factory.mktemp("versions"), load_file(model / "model.safetensors"), []
    for number in range(3):
        weights["model.embed_tokens.weight"][number, :5] += 0.5
        options: dict[str, Any] = {"run_id": "r", "model_files": (), "stop_token_ids": (), "chunk_bytes": 1 << 10}
        snapshot = Snapshot.build(number, weights, incarnation=0, **options)
        made.append(write_version(folder, snapshot.label, weights))
    return made


def test_prompts_have_exactly_as_many_ids_and_end_like_a_conversation(model: Path) -> None:
    tokenizer = PolicyTokenizer.from_folder(model)
    (whole,) = whole_prompts(tokenizer, 1, 50)
    for ids in exact_prompts(tokenizer, 3, 130):
        assert len(ids) == 130
        assert ids[-5:] == whole[-5:]


def test_too_few_long_documents_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="only 0 abstracts"):
        exact_prompts(PolicyTokenizer.from_folder(model), 2, 4000)


def test_a_child_answers_each_job_whatever_its_libraries_print() -> None:
    with Child("echo", [sys.executable, "-c", ECHO]) as child:
        assert [child.ask({"value": value}) for value in (1, 21)] == [{"twice": 2}, {"twice": 42}]


def test_what_a_child_said_before_it_failed_is_told() -> None:
    with Child("echo", [sys.executable, "-c", ECHO]) as child, pytest.raises(ServiceFailed, match="can't be done"):
        child.ask({"value": -1})


def test_the_engine_counts_every_token_and_each_prompt_once(model: Path) -> None:
    side = EngineSide("torch", model, 1, 0)
    assert side.prefill({**JOB, "seed": 1}) == 8
    assert side.run({**JOB, "seed": 1})["tokens"] == 2 * 3 * 6


def test_generate_makes_exactly_as_many_tokens(model: Path) -> None:
    assert GenerateSide(model, 1).run({**JOB, "seed": 1})["tokens"] == 2 * 3 * 6


class FakeChild:
    """Answers with a rate of its own."""

    def __init__(self, name: str, rate: float) -> None:
        self.name = name
        self._rate = rate

    def __enter__(self) -> FakeChild:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        tokens = len(job["prompts"]) * job["size"] * job["limit"]
        if job.get("do") == "prefill":
            return {"tokens": sum(map(len, job["prompts"]))}
        return {"seconds": tokens / self._rate, "tokens": tokens, "ids_sha256": "x"}


def test_ratios_are_ours_over_theirs_and_what_is_missing_is_said(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(_: Any, name: str, *, python: Path | None = None, lookup_tokens: int = 0) -> FakeChild:
        return FakeChild(name, {0: 100.0, 3: 90.0, 7: 130.0}[lookup_tokens] if name == "torch" else 50.0)

    monkeypatch.setattr(tool._Sides, "start", start)
    monkeypatch.setattr(tool, "PROMPT", 120)
    monkeypatch.setenv("TERSELY_VLLM_ENV", str(tmp_path / "none"))
    said: list[str] = []
    found = tool.run_bench_rollout(model=str(model), turns=2, threads=1, lookup=True, progress=said.append)
    assert found["tokens_per_second"] == {"torch": 100.0, "transformers_generate": 50.0, "vllm": None}
    assert found["ratio_over_generate"] == 2.0
    assert found["prefill_tokens_per_prompt_token"] == 1.0
    assert found["lookup_speedup"] == 1.3
    assert "make setup-vllm" in found["details"]["not_measured"]["vllm"]


def test_swaps_are_timed_with_and_without_groups_running(model: Path, versions: list[Path]) -> None:
    found = swap_pauses(versions, model, 3, threads=1)
    assert found["count"] == 3
    assert 0 < found["median_ms"] <= found["p95_ms"] <= found["most_ms"]
    assert found["probe_median_ms"] < found["most_ms"]


def test_weights_come_over_a_line_as_delta_and_as_full_copy(model: Path, versions: list[Path]) -> None:
    def measured(workers: int, *, full: bool) -> dict[str, Any]:
        return run_bench_link(
            versions=versions[0].parent,
            rates=[20.0],
            workers=[workers],
            model=model,
            full=full,
            delay_seconds=0.1,
            progress=lambda _: None,
        )

    found = measured(1, full=True)
    delta, copy = found["rows"]
    (together,) = measured(2, full=False)["rows"]
    assert (delta["coding"], copy["coding"], together["coding"]) == ("delta", "full", "delta")
    assert found["delta_bytes"] == delta["payload_bytes"] < found["full_bytes"] / 50
    assert copy["payload_bytes"] == found["full_bytes"]
    assert together["sent_bytes"] > 2 * found["delta_bytes"]
    assert min(row["over_line"] for row in (delta, copy, together)) > 1
    parts = ("publish_seconds", "fetch_seconds", "stage_seconds", "swap_seconds", "probe_seconds")
    assert [part in copy for part in parts] == [True] * 5
    assert [part in together for part in parts] == [True, True, False, False, False]
    assert sum(copy[part] for part in parts) <= copy["seconds"] + 0.01
    # The announcement comes one way; the request goes, and its answer comes.
    assert min(row["fetch_seconds"] for row in (delta, copy, together)) > 0.2
    assert delta["seconds"] > 0.3
