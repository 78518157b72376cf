"""A resume that fails before it begins leaves the run as it was."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

import tersely.trainer.run_directory as run_directory
import tersely.trainer.session as session
from tersely.config import Recipe
from tersely.errors import ModelInvalid
from tersely.models.tiny import make_tiny_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.node.drain import DrainSignal
from tersely.trainer.run_directory import RunDirectory
from tersely.trainer.wal import WriteAheadLog
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import log_pb2


def test_the_recipe_that_the_log_knows_stays_until_the_log_knows_another(
    tmp_path: Path, valkey_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate({"rpc": {"port": 0}, "evaluation": {"prompts": 0}})
    written = recipe.model_dump(mode="json")
    del written["length"]["target_range"]  # as a version wrote it that did not have this setting
    started = log_pb2.TrainerStarted(
        run_id="r-test",
        incarnation=1,
        initial_weights=WeightsLabel(PolicyVersion(0), "aa").to_proto(),
        recipe_sha256=run_directory._sha256(run_directory._course(written, steps=False)),
    )
    with RunDirectory(tmp_path / "run", resume=False) as directory:
        with WriteAheadLog(directory.log_file) as wal:
            wal.append(log_pb2.LogRecord(trainer_started=started), sync=True)
        directory.write_json("recipe.json", written)

    def no_model(inputs: session.Inputs) -> Any:
        raise ModelInvalid("There is no room for it.", "Try again.")

    monkeypatch.setattr(session, "_learner", no_model)
    folder = make_tiny_model(tmp_path / "model")
    tokenizer = PolicyTokenizer.from_folder(folder)
    inputs = session.Inputs(recipe, "redis://unused", valkey_client, folder, tokenizer, [], [], 0.0)  # type: ignore[arg-type]
    assert run_directory.course_sha256(recipe) != started.recipe_sha256
    for _ in range(2):
        with RunDirectory(tmp_path / "run", resume=True) as directory, ExitStack() as stack:
            with pytest.raises(ModelInvalid):  # and not that the recipe is another one
                session.run_session(inputs, directory, DrainSignal(), stack)
            assert directory.read_json("recipe.json") == written
