"""Exports of a run: the published weights, loadable by plain Transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tersely.config import Recipe
from tersely.errors import CheckpointInvalid, ConfigValue, RunDirMissing
from tersely.models.load import load_policy
from tersely.testing.modules import load_module
from tersely.trainer.checkpoint import Keeping, write_checkpoint
from tersely.trainer.export import export_policy, published_sha256, run_export
from tersely.trainer.provenance import provenance_of
from tersely.types import PolicyVersion, WeightsLabel

_bench = load_module(Path(__file__).with_name("export_bench.py"))
logging_as_before = _bench.logging_as_before
model_folder = _bench.model_folder
published = _bench.published
changed_masters = _bench.changed_masters
run_dir = _bench.run_dir
equal = _bench.equal


def test_plain_transformers_loads_the_export_with_equal_logits(
    run_dir: Path, tmp_path: Path, model_folder: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    run_export(run_dir, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    policy = load_policy(model_folder)
    policy.load_state_dict({name: tensor.float() for name, tensor in published[4].items()}, strict=False)
    ids = tokenizer("A text of some words.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded.float()(ids).logits, policy(ids).logits)
    assert tokenizer.chat_template


@pytest.mark.parametrize(("which", "step"), [("last", 4), ("2", 2), ("4", 4), ("best", 2)])
def test_each_checkpoint_can_be_had(
    run_dir: Path, tmp_path: Path, published: dict[int, dict[str, torch.Tensor]], which: str, step: int
) -> None:
    best = {"step": 2, "weights_sha256": published_sha256(published[2])}
    (run_dir / "best.json").write_text(json.dumps(best))
    found = run_export(run_dir, tmp_path / "out", which)
    assert (found["step"], found["policy_version"], found["finished"]) == (step, step, False)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert equal(weights, published[step])
    assert found["weights_sha256"] == published_sha256(weights)


def test_after_a_roll_back_the_last_is_the_newest_version_and_not_the_highest_step(
    run_dir: Path, tmp_path: Path, model_folder: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    tensors, learner = changed_masters(model_folder, 2).state()
    write_checkpoint(
        run_dir / "checkpoints",
        step=3,
        policy_version=7,
        weights_sha256=published_sha256(published[2]),
        tensors=tensors,
        learner=learner,
        keeping=Keeping(9),
    )
    assert run_export(run_dir, tmp_path / "out")["step"] == 3


def test_the_policy_of_a_finished_run_is_taken_from_its_own_export(
    run_dir: Path, tmp_path: Path, model_folder: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    label = WeightsLabel(PolicyVersion(4), published_sha256(published[4]))
    recipe = Recipe.model_validate_json((run_dir / "recipe.json").read_text())
    export_policy(model_folder, published[4], run_dir / "policy", provenance_of(run_dir, recipe, "r-1", 4, label))
    (run_dir / "report.json").write_text(json.dumps({"run_id": "r-1", "policy_version": 4}))
    (run_dir / "checkpoints" / "step-000004" / "state.safetensors").write_bytes(b"no longer needed")
    found = run_export(run_dir, tmp_path / "out")
    assert found["finished"]
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), published[4])


def test_weights_other_than_those_published_are_refused(run_dir: Path, tmp_path: Path) -> None:
    file = run_dir / "checkpoints" / "step-000004" / "state.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps({**meta, "weights_sha256": "f" * 64}))
    with pytest.raises(CheckpointInvalid, match="not those that the run published"):
        run_export(run_dir, tmp_path / "out")
    save_file({"x": torch.zeros(1)}, file.with_name("state.safetensors"))
    with pytest.raises(CheckpointInvalid, match="hash"):
        run_export(run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_named(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirMissing, match="There is no run"):
        run_export(tmp_path, tmp_path / "out")
    with pytest.raises(RunDirMissing, match="it has 2, 4"):
        run_export(run_dir, tmp_path / "out", "3")
    with pytest.raises(RunDirMissing, match="no best checkpoint"):
        run_export(run_dir, tmp_path / "out", "best")
    for folder in (run_dir / "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    with pytest.raises(RunDirMissing, match="no checkpoint yet"):
        run_export(run_dir, tmp_path / "out")


def test_a_damaged_recipe_is_named(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "recipe.json").write_text('{"run": ')
    with pytest.raises(ConfigValue, match=r"recipe\.json is not a recipe"):
        run_export(run_dir, tmp_path / "out")
