"""Figures over seeds, tests between arms, and the three files that show them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tersely.ablation.figures import build_report
from tersely.ablation.markdown import render_markdown
from tersely.ablation.page import render_page
from tersely.ablation.run import run_matrix
from tersely.evaluation.significance import holm
from tersely.testing.ablations import FakeCommands, small_matrix

TINY = Path(__file__).parents[3] / "recipes" / "tiny.toml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ablation."""
    path = tmp_path_factory.mktemp("ablation")
    run_matrix(small_matrix(path, TINY), path, FakeCommands())
    return path


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    matrix = small_matrix(folder, TINY)
    return build_report(matrix, run_matrix(matrix, folder, FakeCommands()), resamples=99)


def mean_of(folder: Path, cell: str, name: str) -> float:
    found = json.loads((folder / "cells" / cell / "evaluation.json").read_text())
    return float(found["sampled"]["metrics"][name]["mean"])


def test_an_arm_s_mean_is_over_its_seeds_and_each_seed_is_shown(folder: Path, report: dict[str, Any]) -> None:
    arm = report["arms"][1]
    assert (arm["arm"], arm["seeds"]) == ("r joint", [0, 1])
    figure = arm["sampled"]["metrics"]["rouge_l"]
    means = [mean_of(folder, f"r-joint-seed{seed}", "rouge_l") for seed in (0, 1)]
    assert list(figure["by_seed"].values()) == pytest.approx(means)
    assert figure["mean"] == pytest.approx(sum(means) / 2)
    assert figure["n"] == 20, "prompts are what is drawn, not prompts times seeds"
    assert figure["ci95"][0] <= figure["mean"] <= figure["ci95"][1]
    assert len(arm["sampled"]["lengths"]) == 40


def test_arms_are_held_against_the_length_alone_and_schedules_against_each_other(report: dict[str, Any]) -> None:
    asked = {(pair["a"], pair["b"]) for pair in report["comparisons"]}
    assert asked == {("lone", "r joint"), ("lone", "r staged"), ("r joint", "r staged")}
    assert {pair["metric"] for pair in report["comparisons"]} == {
        "abs_length_error",
        "rouge_l",
        "composite_at_equal_length",
    }
    assert {pair["mode"] for pair in report["comparisons"]} == {"sampled"}


def test_a_difference_is_that_of_the_means_and_corrected_over_all(report: dict[str, Any]) -> None:
    means = {arm["arm"]: arm["sampled"]["metrics"]["rouge_l"]["mean"] for arm in report["arms"]}
    pairs = report["comparisons"]
    (pair,) = (p for p in pairs if (p["a"], p["b"], p["metric"]) == ("lone", "r joint", "rouge_l"))
    assert pair["mean_difference"] == pytest.approx(means["r joint"] - means["lone"])
    assert sum(pair["by_seed"].values()) / 2 == pytest.approx(pair["mean_difference"])
    assert pair["p_holm"] < 0.05, "the fake's r arms say half of the missing words more"
    assert [p["p_holm"] for p in pairs] == holm([p["p"] for p in pairs])


def test_a_failed_cell_leaves_its_arm_with_the_other_seed_and_is_named(tmp_path: Path) -> None:
    matrix = small_matrix(tmp_path, TINY)
    outcomes = run_matrix(matrix, tmp_path, FakeCommands(fail=lambda words: "r-joint-seed0" in " ".join(words)))
    report = build_report(matrix, outcomes, resamples=99)
    assert not report["complete"]
    assert report["arms"][1]["seeds"] == [1]
    pair = next(p for p in report["comparisons"] if p["b"] == "r joint")
    assert list(pair["by_seed"]) == ["1"], "compared on the seed that both have"
    assert "r-joint-seed0" in render_page(report)
    assert "data\\_missing: no such file" in render_markdown(report)


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    matrix = small_matrix(tmp_path, TINY)
    outcomes = run_matrix(matrix, tmp_path, FakeCommands(fail=lambda words: True))
    report = build_report(matrix, outcomes, resamples=99)
    assert (report["arms"], report["comparisons"]) == ([], [])
    assert "6 of 6 runs failed" in render_page(report)
    assert "6 of 6 runs failed" in render_markdown(report)


class Reader(HTMLParser):
    """Notes tags, and whether they are closed in order."""

    VOID = frozenset({"meta", "line", "circle", "rect", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_has_a_histogram_per_arm(report: dict[str, Any]) -> None:
    reader = Reader()
    page = render_page(report)
    reader.feed(page)
    assert reader.open == []
    assert "script" not in reader.tags
    lengths = page.split("<h2>Lengths</h2>")[1].split("<h2>")[0]
    assert lengths.count("<figure>") == 3
    for arm in ("lone", "r joint", "r staged"):
        assert f"<figcaption>{arm}</figcaption>" in lengths


def test_hostile_text_stays_text(report: dict[str, Any]) -> None:
    hostile = "<script>alert(1)</script> | [x](javascript:y) `z`"
    summary = {"arm": "lone", "seed": 0, "completion": hostile, "tokens": 3, "stopped": True, "rouge_l": None}
    example = {"id": "<b>", "target_tokens": 8, "reference": hostile, "document": hostile, "summaries": [summary]}
    bad = {**report, "file": "<i>", "examples": [example]}
    assert "<script" not in render_page(bad)
    shown = render_markdown(bad)
    assert "<script" not in shown.replace("\\<script", "")
    rows = [line for line in shown.splitlines() if line.startswith("| lone | 3")]
    assert [row.count("|") - row.count("\\|") for row in rows] == [4], "a summary can't add a column"


def test_markdown_has_every_arm_and_comparison(report: dict[str, Any]) -> None:
    shown = render_markdown(report)
    assert shown.count("\n| r staged |") >= 2
    tests = shown.split("## Comparisons")[1].split("##")[0]
    assert sum(line.startswith("| ") for line in tests.splitlines()) == 1 + len(report["comparisons"])


def test_the_report_is_plain_json(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report
