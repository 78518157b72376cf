import hashlib
import json
from pathlib import Path
from typing import Any

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


def dumped(recipe: Recipe, **learner: object) -> dict[str, Any]:
    tree = recipe.model_dump(mode="json")
    tree["learner"] |= learner
    return tree


def made(**sections: dict[str, object]) -> Recipe:
    return Recipe.model_validate({"model": {"name": "tiny"}, "data": {"source": "aclsum"}, **sections})


STAGE = {"name": "one", "steps": 5, "rewards": {"length": {}}}


@pytest.mark.parametrize("more", [{"learner": {"schedule": "cosine"}}, {"learner": {"schedule": "linear"}}])
def test_the_length_of_a_run_belongs_to_its_course_where_the_learning_rate_falls_to_its_end(
    more: dict[str, dict[str, object]],
) -> None:
    recipe, longer = made(run={"steps": 5}, **more), made(run={"steps": 9}, **more)
    with pytest.raises(CheckpointInvalid, match=r"\(run\.steps\).*falls to the end"):
        refuse_other_course(course_sha256(recipe), longer, dumped(recipe))


def test_stages_belong_to_the_course() -> None:
    recipe = Recipe.model_validate({"run": {"steps": 5}, "stages": [STAGE]})
    longer = Recipe.model_validate({"run": {"steps": 9}, "stages": [{**STAGE, "steps": 9}]})
    with pytest.raises(CheckpointInvalid, match=r"\(run\.steps, stages\.1\.steps\)"):
        refuse_other_course(course_sha256(recipe), longer, dumped(recipe))
    with pytest.raises(CheckpointInvalid, match="stages"):
        refuse_other_course(course_sha256(recipe), made(run={"steps": 5}), dumped(recipe))


def test_what_differs_is_named() -> None:
    recipe, other = made(learner={"clip_low": 0.1}), made(learner={"clip_low": 0.3}, run={"seed": 3})
    with pytest.raises(CheckpointInvalid, match=r"\(learner\.clip_low, run\.seed\)"):
        refuse_other_course(course_sha256(recipe), other, dumped(recipe))


def test_a_run_begun_before_a_setting_existed_goes_on_with_its_default_only() -> None:
    earlier = dumped(made())
    del earlier["learner"]["kl_coefficient"]
    del earlier["stages"]
    course = {
        name: dict(earlier[name]) for name in ("run", "model", "data", "length", "sampling", "learner", "rewards")
    }
    for key in ("steps", "checkpoint_every", "keep_checkpoints"):
        del course["run"][key]
    del course["learner"]["threads"]
    logged = hashlib.sha256(json.dumps(course, sort_keys=True).encode()).hexdigest()
    refuse_other_course(logged, made(), earlier)
    with pytest.raises(CheckpointInvalid, match=r"\(learner\.kl_coefficient\)"):
        refuse_other_course(logged, made(learner={"kl_coefficient": 0.1}), earlier)
    with pytest.raises(CheckpointInvalid, match="differs"):
        refuse_other_course("ab" * 32, made(), earlier)


def test_a_trainer_that_was_superseded_writes_no_file_of_the_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", resume=False) as first:
        begin(first)
        first.write_json("status.json", {"by": 1})
        first.file(".trainer.lock").unlink()
        with RunDirectory(tmp_path / "run", resume=True) as second:
            second.write_json("status.json", {"by": 2})
            with pytest.raises(TrainerSuperseded):
                first.write_json("status.json", {"by": 1})
            assert second.read_json("status.json") == {"by": 2}
            first.release()
            with pytest.raises(RunDirBusy):
                RunDirectory(tmp_path / "run", resume=True)


def test_what_only_fits_the_machine_is_free() -> None:
    logged = course_sha256(made())
    changes: tuple[dict[str, object], ...] = (
        {"micro_batch_tokens": 512},
        {"recompute": True},
        {"device": "cpu"},
        {"threads": 3},
        {"parallel": "fsdp"},
    )
    for change in changes:
        refuse_other_course(logged, made(learner=change))
