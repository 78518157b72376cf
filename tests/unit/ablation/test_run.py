"""Which commands an ablation runs, and what it keeps when it is interrupted, fails, or is started again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tersely.ablation.plan import Matrix
from tersely.ablation.processes import Stopped
from tersely.ablation.run import run_matrix
from tersely.errors import RunDirNotEmpty
from tersely.testing.ablations import SMALL, FakeCommands
from tersely.testing.ablations import small_matrix as make_matrix

TINY = Path(__file__).parents[3] / "recipes" / "tiny.toml"
CELLS = ["lone-seed0", "r-joint-seed0", "r-staged-seed0", "lone-seed1", "r-joint-seed1", "r-staged-seed1"]


def small_matrix(folder: Path, text: str = SMALL) -> Matrix:
    return make_matrix(folder, TINY, text)


def test_every_cell_is_trained_and_measured_once_in_order(tmp_path: Path) -> None:
    commands = FakeCommands()
    outcomes = run_matrix(small_matrix(tmp_path), tmp_path, commands)
    assert commands.cells("up") == commands.cells("evaluate") == CELLS
    assert [one.failure for one in outcomes] == [""] * 6
    assert not any("--resume" in words for words in commands.calls)


def test_all_are_measured_alike_and_the_first_with_its_baselines(tmp_path: Path) -> None:
    commands = FakeCommands()
    run_matrix(small_matrix(tmp_path), tmp_path, commands)
    measured = [words[2:] for words in commands.calls if words[0] == "evaluate"]
    assert [words.count("--baselines") for words in measured] == [1, 0, 0, 0, 0, 0]
    without_paths = [[word for word in words if "/" not in word and word != "--baselines"] for words in measured]
    assert all(words == without_paths[0] for words in without_paths)
    assert without_paths[0][:4] == ["--split", "val", "--limit", "20"]


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    run_matrix(small_matrix(tmp_path), tmp_path, FakeCommands())
    again = FakeCommands()
    outcomes = run_matrix(small_matrix(tmp_path), tmp_path, again)
    assert again.calls == []
    assert all(one.kept and not one.failure for one in outcomes)


def test_a_half_done_run_is_resumed_and_a_trained_one_only_measured(tmp_path: Path) -> None:
    matrix = small_matrix(tmp_path)
    with pytest.raises(Stopped):
        run_matrix(matrix, tmp_path, FakeCommands(stop_after=2))  # while the second cell trains
    again = FakeCommands()
    run_matrix(matrix, tmp_path, again)
    assert again.cells("up") == CELLS[1:]
    assert [("--resume" in words) for words in again.calls if words[0] == "up"] == [True, False, False, False, False]
    (tmp_path / "cells" / CELLS[3] / "evaluation.json").unlink()
    third = FakeCommands()
    run_matrix(matrix, tmp_path, third)
    assert (third.cells("up"), third.cells("evaluate")) == ([], [CELLS[3]])


def test_a_cell_that_fails_keeps_no_other_from_running_and_is_tried_again(tmp_path: Path) -> None:
    matrix = small_matrix(tmp_path)
    outcomes = run_matrix(matrix, tmp_path, FakeCommands(fail=lambda words: "r-joint-seed0" in " ".join(words)))
    assert [one.failure for one in outcomes] == ["", "data_missing: no such file", "", "", "", ""]
    again = FakeCommands()
    assert not any(one.failure for one in run_matrix(matrix, tmp_path, again))
    assert again.cells("up") == ["r-joint-seed0"]


def test_runs_of_other_settings_are_neither_mixed_in_nor_overwritten(tmp_path: Path) -> None:
    run_matrix(small_matrix(tmp_path), tmp_path, FakeCommands())
    commands = FakeCommands()
    with pytest.raises(RunDirNotEmpty, match="lone-seed0"):
        run_matrix(small_matrix(tmp_path, SMALL.replace("steps = 4", "steps = 6")), tmp_path, commands)
    assert commands.calls == []


def test_another_way_to_measure_measures_again_without_training(tmp_path: Path) -> None:
    run_matrix(small_matrix(tmp_path), tmp_path, FakeCommands())
    commands = FakeCommands()
    run_matrix(small_matrix(tmp_path, SMALL.replace("limit = 20", "limit = 10")), tmp_path, commands)
    assert (commands.cells("up"), commands.cells("evaluate")) == ([], CELLS)


def test_more_seeds_are_added_to_what_is_there(tmp_path: Path) -> None:
    run_matrix(small_matrix(tmp_path), tmp_path, FakeCommands())
    commands = FakeCommands()
    run_matrix(small_matrix(tmp_path, SMALL.replace("[0, 1]", "[0, 1, 2]")), tmp_path, commands)
    assert commands.cells("up") == ["lone-seed2", "r-joint-seed2", "r-staged-seed2"]


def test_several_cells_at_a_time_give_the_same_outcomes(tmp_path: Path) -> None:
    commands = FakeCommands()
    outcomes = run_matrix(small_matrix(tmp_path), tmp_path, commands, parallel=3)
    assert sorted(commands.cells("up")) == sorted(CELLS)
    assert [one.cell.name for one in outcomes] == CELLS


def test_a_cell_s_directory_says_what_it_is(tmp_path: Path) -> None:
    run_matrix(small_matrix(tmp_path), tmp_path, FakeCommands())
    note = json.loads((tmp_path / "cells" / "r-staged-seed1" / "cell.json").read_text())
    assert (note["config"], note["schedule"], note["seed"]) == ("r", "staged", 1)
    assert "run.seed=1" in note["overrides"]
