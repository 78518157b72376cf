"""`tersely summarize`: summaries alone on standard output, by runs, folders and names; clear words for bad input."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tersely.cli.main import app
from tersely.cli.summarize import printable
from tersely.config import Recipe
from tersely.data.prompts import prepare_prompt
from tersely.data.records import Record
from tersely.errors import ConfigValue, DataEmpty, DataMissing, DataRecord, ModelMissing, RunDirMissing
from tersely.models.provenance import PROVENANCE_FILE
from tersely.models.tiny import make_tiny_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.engines import EngineSettings, open_engine
from tersely.rollout.summarize import run_summarize

TEXT = "We present a new method. It works well on much data. Others may find it of use."
PROMPT = "In {target_tokens} tokens, please: {document}"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command sets up logging for its process."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny-chat")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "paper.txt"
    path.write_text(TEXT)
    return path


def recipe(**length: Any) -> Recipe:
    data = {"prompt": PROMPT, "max_document_tokens": 16}
    return Recipe.model_validate({"data": data, "length": {"target_tokens": 20, **length}})


@pytest.fixture
def run_dir(tmp_path: Path, model: Path) -> Path:
    """A finished run, as far as this command looks."""
    folder = tmp_path / "run"
    shutil.copytree(model, folder / "policy")
    (folder / "recipe.json").write_text(recipe().model_dump_json())
    (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    return folder


def summarize(*arguments: object) -> None:
    app(["summarize", "--threads", "1", *map(str, arguments)], standalone_mode=False)


def as_json(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["summaries"]
    return rows


def test_a_run_summarizes_with_the_prompt_and_the_cut_of_its_training(
    run_dir: Path, text_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = open_engine("torch", EngineSettings(threads=1, batch_sequences=1))
    monkeypatch.setattr("tersely.rollout.summarize.open_engine", lambda *_: real)
    admit = real.admit
    monkeypatch.setattr(real, "admit", lambda group: seen.append(group) or admit(group))
    summarize("--model", run_dir, text_file, "--json")
    (row,) = as_json(capsys)
    tokenizer = PolicyTokenizer.from_folder(run_dir / "policy")
    trained = prepare_prompt(Record("x", TEXT, ""), tokenizer, recipe().data, 20)
    assert tuple(seen[0].prompt_token_ids) == trained.token_ids
    assert seen[0].sampling.max_completion_tokens == 52
    assert row["document_tokens_cut"] == trained.document_tokens_cut > 0
    assert row["target_tokens"] == 20
    assert 0 <= row["tokens"] <= 52
    assert row["stopped"] == (row["tokens"] < 52)


def test_only_the_summary_is_on_standard_output(
    run_dir: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The likeliest first token of this random model ends the summary; drawn ones do not.
    summarize("--model", run_dir, text_file, "--temperature", 1, "--seed", 4, "--json")
    (row,) = as_json(capsys)
    summarize("--model", run_dir, text_file, "--temperature", 1, "--seed", 4)
    shown = capsys.readouterr()
    assert row["text"]
    assert shown.out == printable(row["text"]) + "\n"
    assert f"{text_file}: {row['tokens']} tokens (asked for 20)" in shown.err
    assert "tokens of the text did not fit" in shown.err


def test_a_summary_does_not_depend_on_the_files_beside_it(
    run_dir: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Something else is told here.")
    summarize("--model", run_dir, text_file, "--temperature", 1, "--samples", 3, "--json")
    alone = as_json(capsys)
    summarize("--model", run_dir, other, text_file, "--temperature", 1, "--samples", 3, "--json")
    beside = as_json(capsys)
    texts = [row["text"] for row in alone]
    assert len(set(texts)) == 3
    assert [row["text"] for row in beside if row["document"] == str(text_file)] == texts
    assert [row["sample"] for row in beside] == [0, 1, 2, 0, 1, 2]


def test_a_folder_that_was_exported_knows_its_prompt(
    model: Path, tmp_path: Path, text_file: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "exported"
    shutil.copytree(model, exported)
    (exported / PROVENANCE_FILE).write_text(json.dumps({"recipe": recipe().model_dump(mode="json")}))
    rows = []
    for name in (exported, run_dir, model):
        summarize("--model", name, text_file, "--temperature", 1, "--json")
        rows += as_json(capsys)
    assert rows[0]["text"] == rows[1]["text"]
    assert [row["target_tokens"] for row in rows] == [20, 20, 64]
    assert rows[2]["document_tokens_cut"] == 0


@pytest.mark.parametrize(
    ("length", "tokens", "warned"),
    [({}, 20, False), ({}, 30, True), ({"target_range": [10, 40]}, 30, False), ({"target_range": [10, 40]}, 41, True)],
)
def test_a_length_that_was_not_trained_is_asked_for_with_a_warning(
    run_dir: Path,
    text_file: Path,
    capsys: pytest.CaptureFixture[str],
    length: dict[str, Any],
    tokens: int,
    warned: bool,
) -> None:
    (run_dir / "recipe.json").write_text(recipe(**length).model_dump_json())
    summarize("--model", run_dir, text_file, "--tokens", tokens, "--json")
    shown = capsys.readouterr()
    assert json.loads(shown.out)["summaries"][0]["target_tokens"] == tokens
    assert ("it may not keep to" in shown.err) == warned


def test_standard_input_is_a_file(
    run_dir: Path, text_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    summarize("--model", run_dir, text_file, "--temperature", 1, "--json")
    (from_file,) = as_json(capsys)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    summarize("--model", run_dir, "-", "--temperature", 1, "--json")
    (from_pipe,) = as_json(capsys)
    assert (from_pipe["document"], from_pipe["text"]) == ("-", from_file["text"])


@pytest.mark.parametrize(
    ("raw", "error"), [(b"", DataEmpty), (b" \n\t\n", DataEmpty), (b"caf\xe9", DataRecord), (None, DataMissing)]
)
def test_a_file_without_text_is_refused_before_a_model_is_loaded(
    tmp_path: Path, raw: bytes | None, error: type[Exception]
) -> None:
    path = tmp_path / "bad.txt"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(error, match=r"bad\.txt"):
        summarize("--model", tmp_path / "no-such-model", path)


def test_a_length_beyond_the_models_context_is_refused(run_dir: Path, text_file: Path) -> None:
    with pytest.raises(ConfigValue, match="context of 4096 tokens") as refused:
        summarize("--model", run_dir, text_file, "--tokens", 5000)
    assert "Ask for" in refused.value.way_out


def test_a_damaged_recipe_is_named(run_dir: Path, text_file: Path) -> None:
    (run_dir / "recipe.json").write_text('{"run": ')
    with pytest.raises(ConfigValue, match=r"recipe\.json is not a recipe"):
        summarize("--model", run_dir, text_file)


def test_the_way_out_of_an_unknown_model_is_one_of_this_command(text_file: Path) -> None:
    with pytest.raises(ModelMissing) as refused:
        summarize("--model", "NOPE", text_file)
    assert "--model" in refused.value.way_out
    assert "model.name" not in refused.value.way_out


def test_a_run_without_a_checkpoint_says_so(run_dir: Path, text_file: Path) -> None:
    (run_dir / "status.json").write_text(json.dumps({"state": "training"}))
    with pytest.raises(RunDirMissing, match="no checkpoint yet"):
        summarize("--model", run_dir, text_file)


def test_a_policy_folder_with_other_weights_than_the_runs_last_is_not_used(
    run_dir: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "report.json").write_text(json.dumps({"final_weights_sha256": "a" * 64, "policy_version": 4}))
    facts = {"recipe": recipe().model_dump(mode="json"), "weights_sha256": "b" * 64}
    (run_dir / "policy" / PROVENANCE_FILE).write_text(json.dumps(facts))
    with pytest.raises(RunDirMissing, match="no checkpoint yet"):
        summarize("--model", run_dir, text_file)
    assert "does not hold the run's last weights" in capsys.readouterr().err
    (run_dir / "policy" / PROVENANCE_FILE).write_text(json.dumps({**facts, "weights_sha256": "a" * 64}))
    summarize("--model", run_dir, text_file)


@pytest.mark.parametrize("arguments", [("--samples", 2), ("--temperature", 1, "--checkpoint", "best")])
def test_options_that_make_no_sense_are_usage_errors(model: Path, text_file: Path, arguments: tuple[object]) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["summarize", "--model", str(model), str(text_file), *map(str, arguments)])
    assert ended.value.code == 2


def test_what_would_steer_a_terminal_is_not_printed() -> None:
    assert printable("a\x1b[2Jb\n\tc\x07é") == "a[2Jb\n\tcé"


def test_greedy_ignores_the_seed(model: Path) -> None:
    texts = [
        [
            (row.text, row.tokens)
            for row in run_summarize(
                model, [("x", TEXT)], recipe().data, target_tokens=20, max_completion_tokens=52, seed=seed, threads=1
            )
        ]
        for seed in (1, 2)
    ]
    assert texts[0] == texts[1]
