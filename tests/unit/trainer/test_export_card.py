"""The card of an export: where the policy comes from, what it was trained on, and how well it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tersely.models.provenance import read_provenance
from tersely.testing.modules import load_module
from tersely.trainer.card import interval
from tersely.trainer.export import published_sha256, run_export

_bench = load_module(Path(__file__).with_name("export_bench.py"))
model_folder = _bench.model_folder
logging_as_before = _bench.logging_as_before
published = _bench.published
run_dir = _bench.run_dir


def evaluation(name: str, sha: str, share: float) -> dict[str, Any]:
    rows = [
        {
            "prompt_id": f"p{index}",
            "mode": mode,
            "tokens": 60 + index % 5,
            "abs_length_error": 4 - index % 5,
            "within_5": index < share * 20,
            "stopped": True,
            "rewards": {"length": -0.1 * (index % 3), "rouge_l": 0.2},
            "rouge_l": 0.2,
        }
        for index in range(20)
        for mode in ("greedy", "sampled")
    ]
    return {"name": name, "weights_sha256": sha, "rows": rows}


def write_evaluations(run_dir: Path, sha: str) -> None:
    (run_dir / "evaluation-before.json").write_text(json.dumps(evaluation("before", "0" * 64, 0.25)))
    (run_dir / "evaluation-after.json").write_text(json.dumps(evaluation("after", sha, 0.75)))


def test_the_card_says_where_the_policy_comes_from_and_how_well_it_does(
    run_dir: Path, tmp_path: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    write_evaluations(run_dir, published_sha256(published[4]))
    run_export(run_dir, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "| share within ±5 tokens of the target, greedy | 0.250 [0.112, 0.469] | 0.750 [0.531, 0.888] |" in card
    assert "| rouge_l, sampled | 0.200 | 0.200 | +0.000 [+0.000, +0.000] | 20 |" in card
    assert published_sha256(published[4]) in card
    assert "Summarize the following text in about {target_tokens} tokens." in card
    recipe = json.loads(card.partition("```json\n")[2].partition("```")[0])
    assert recipe["run"]["steps"] == 6
    assert recipe["model"]["name"] == "tiny-chat"
    assert str(tmp_path) not in card
    assert "secret-host" not in card + (tmp_path / "out" / "tersely.json").read_text()
    provenance = read_provenance(tmp_path / "out")
    assert provenance is not None
    assert (provenance["run_id"], provenance["step"]) == ("r-1", 4)


def test_figures_of_other_weights_are_not_shown_on_the_card(
    run_dir: Path, tmp_path: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    write_evaluations(run_dir, published_sha256(published[4]))
    run_export(run_dir, tmp_path / "out", "2")
    assert "These weights were not evaluated" in (tmp_path / "out" / "README.md").read_text()


def test_the_python_of_the_card_runs(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_export(run_dir, tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "document.txt").write_text("A short text. It has two sentences.")
    code = (tmp_path / "FOLDER" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    code = code.replace('open("document.txt").read()', '__import__("pathlib").Path("document.txt").read_text()')
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out != ""


def test_the_card_tells_trained_rewards_from_measured_ones(
    run_dir: Path, tmp_path: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    tree = json.loads((run_dir / "recipe.json").read_text())
    tree["rewards"] = {"length": {"weight": 1.0}, "rouge_l": {"weight": 0.5}, "bleu": {"weight": 0.0}}
    (run_dir / "recipe.json").write_text(json.dumps(tree))
    run_export(run_dir, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Rewards: `length` (weight 1), `rouge_l` (weight 0.5). Measured only, weight 0: `bleu`." in card
    tree["stages"] = [
        {"name": "first", "steps": 2, "rewards": {"length": {"weight": 1.0}}},
        {"name": "then", "steps": 4, "rewards": {"length": {"weight": 1.0}, "bleu": {"weight": 0.25}}},
    ]
    (run_dir / "recipe.json").write_text(json.dumps(tree))
    run_export(run_dir, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`length` (weight 1), `bleu` (weight 0 to 0.25, by stage). Measured only, weight 0: `rouge_l`." in card


def test_intervals() -> None:
    assert interval([1.0], is_share=True) is None
    assert interval([0.3, 0.3], is_share=True) is None
    assert interval([0.0] * 9, is_share=False) is None  # a reward that is 0 everywhere, not a share
    low, high = interval([1.0] * 20, is_share=True) or (0, 0)
    assert (round(low, 3), round(high, 3)) == (0.839, 1.0)  # Wilson, by hand: n / (n + z^2)
    low, high = interval([0.1, 0.2, 0.3, 0.4], is_share=True) or (0, 0)
    assert 0.1 <= low < 0.25 < high <= 0.4
