"""`tersely evaluate` and `tersely compare` from end to end: a model, prompts, rewards, a judge, files and tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner, Result

from tersely.cli.main import app
from tersely.errors import EvaluationsDiffer, ModelMissing
from tersely.evaluation import metrics
from tersely.models.tiny import make_tiny_model
from tersely.testing.judge_server import RuleJudgeServer

RECORDS = [
    {"id": "a", "document": "We present a method for 12 things. It works on much data.", "summary": "A method works."},
    {"id": "b", "document": "Parsing is hard. We parse 300 texts in Berlin in 2004.", "summary": "They parse texts."},
    {"id": "c", "document": "Translation needs data. We gather it. All is well.", "summary": "They gather data."},
]


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing of the user's cache is touched, no embedding model is loaded, and logging is put back."""
    monkeypatch.setenv("TERSELY_CACHE", str(tmp_path / "cache"))
    light = tuple(one for one in metrics._REWARD_METRICS if one.reward != "embedding")
    monkeypatch.setattr(metrics, "_REWARD_METRICS", light)
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny-chat")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("val", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def evaluate(model: Path, data: Path, out: Path, *more: object) -> dict[str, Any]:
    length = ("--target-tokens", 8, "--threads", 1)
    result = run("evaluate", model, "--data", data, *length, "-o", out, *more)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_a_model_is_measured_beside_its_baselines_and_twice_the_same(model: Path, data: Path, tmp_path: Path) -> None:
    more = ("--samples", 2, "--baselines", "--best-of", 3, "--json", "--report", tmp_path / "page.html")
    first = evaluate(model, data, tmp_path / "first.json", *more)
    assert list(first["baselines"]) == ["cut_at_target", "best_of_3", "lead"]
    assert [e["id"] for e in first["greedy"]["examples"]] == ["a", "b", "c"]
    assert [e["sample"] for e in first["sampled"]["examples"]] == [1, 2] * 3
    lead = first["baselines"]["lead"]
    assert lead["examples"][0]["completion"] == "We present a method for 12 things."
    assert lead["metrics"]["copy_rate"]["mean"] == 1.0
    assert all(e["completion_tokens"] <= 8 for e in first["baselines"]["cut_at_target"]["examples"])
    assert len(first["weights_sha256"]) == 64
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert evaluate(model, data, tmp_path / "again.json", *more) == first


def test_what_is_printed_as_json_is_what_is_written(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    result = run("evaluate", model, "--data", data, "--limit", 1, "--target-tokens", 8, "-o", out, "--json")
    assert json.loads(result.stdout) == json.loads(out.read_text())


def test_two_models_are_compared_on_the_same_prompts(model: Path, data: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    evaluate(model, data, a)
    other = shutil.copytree(model, tmp_path / "other")
    result = run("evaluate", other, "--like", a, "--base", model, "--baselines", "-o", b)
    assert "greedy" in result.stdout
    assert json.loads(b.read_text())["baselines"]["zero_shot"] == json.loads(a.read_text())["greedy"]
    result = run("compare", a, b, "--baselines", "--json", "--report", tmp_path / "page.html")
    pairs = json.loads(result.stdout)["pairs"]
    assert {pair["a"] for pair in pairs} >= {"a", "b: lead", "b: zero_shot"}
    assert {"metric", "mode", "mean_difference", "ci95", "p", "p_wilcoxon", "p_holm", "n"} <= pairs[0].keys()
    assert all(pair["mean_difference"] in (0.0, None) for pair in pairs if pair["a"] == "a")
    assert "ROUGE-L" in run("compare", a, b).stdout
    evaluate(model, data, a, "--target-tokens", 9)
    with pytest.raises(EvaluationsDiffer):
        run("compare", a, b)


def test_the_test_split_needs_final_and_every_look_is_logged(model: Path, data: Path, tmp_path: Path) -> None:
    log = tmp_path / "cache" / "final-evaluations.jsonl"
    refused = run("evaluate", model, "--data", data, "--split", "test", "--target-tokens", 8)
    assert refused.exit_code == 2
    assert "--final" in refused.output
    assert not log.exists()
    for looks in (1, 2):
        evaluate(model, data, tmp_path / "e.json", "--split", "test", "--final", "--limit", 1)
        assert len(log.read_text().splitlines()) == looks


def test_a_base_model_that_is_not_there_is_named(model: Path, data: Path) -> None:
    with pytest.raises(ModelMissing, match="--base"):
        run("evaluate", model, "--data", data, "--baselines", "--base", "./nowhere")


def test_a_judge_is_asked_and_its_axes_are_the_composite(model: Path, data: Path, tmp_path: Path) -> None:
    with RuleJudgeServer() as server:
        found = evaluate(model, data, tmp_path / "e.json", "--limit", 1, "--judge", server.url, "--baselines")
    assert found["composite_of"][0] == "judge_faithfulness"
    lead = found["baselines"]["lead"]["examples"][0]
    assert lead["metrics"]["judge_faithfulness"] is not None
    assert lead["metrics"]["composite"] == pytest.approx(lead["metrics"]["judge_composite"] / 4)
    assert set(lead["judge"]) == {"faithfulness", "coverage", "conciseness", "clarity"}
