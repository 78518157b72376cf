from pathlib import Path

import pytest

from tersely.config import Recipe
from tersely.errors import CheckpointInvalid, RunDirBusy, RunDirMissing, RunDirNotEmpty, TrainerSuperseded
from tersely.trainer.run_directory import RunDirectory, course_sha256, refuse_other_course


def begin(directory: RunDirectory) -> None:
    directory.log_file.parent.mkdir()
    directory.log_file.touch()


def test_one_trainer_per_run_directory(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", resume=False), pytest.raises(RunDirBusy):
        RunDirectory(tmp_path / "run", resume=False)


def test_a_run_is_neither_overwritten_nor_resumed_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(RunDirMissing):
        RunDirectory(tmp_path / "run", resume=True)
    with RunDirectory(tmp_path / "run", resume=False) as directory:
        begin(directory)
    with pytest.raises(RunDirNotEmpty):
        RunDirectory(tmp_path / "run", resume=False)


def test_each_start_has_a_higher_incarnation_and_an_older_one_stops(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", resume=False) as first:
        begin(first)
    with RunDirectory(tmp_path / "run", resume=True) as second:
        second.check_incarnation()
        assert second.incarnation == first.incarnation + 1
        with pytest.raises(TrainerSuperseded):
            first.check_incarnation()


def test_a_start_that_failed_leaves_nothing_behind(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", resume=False) as directory:
        directory.write_json("recipe.json", {})
        directory.abandon_if_unused()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_began_is_never_abandoned(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", resume=False) as directory:
        begin(directory)
        directory.abandon_if_unused()
    assert (tmp_path / "run" / "log" / "run.wal").exists()


def test_resume_takes_more_steps_but_not_another_seed() -> None:
    recipe = Recipe()
    logged = course_sha256(recipe)
    longer = recipe.model_copy(update={"run": recipe.run.model_copy(update={"steps": 7, "checkpoint_every": 1})})
    refuse_other_course(logged, longer)
    other = recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": 1})})
    with pytest.raises(CheckpointInvalid, match="recipe"):
        refuse_other_course(logged, other)
