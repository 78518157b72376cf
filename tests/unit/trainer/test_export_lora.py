"""Exports of runs that train an adapter."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tersely.config import Recipe
from tersely.testing.modules import load_module
from tersely.trainer.checkpoint import Keeping, write_checkpoint
from tersely.trainer.export import published_sha256, run_export
from tersely.trainer.learner import Learner

_bench = load_module(Path(__file__).with_name("export_bench.py"))
logging_as_before = _bench.logging_as_before
model_folder = _bench.model_folder
equal = _bench.equal


@pytest.fixture
def lora_run(tmp_path: Path, model_folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run that trains an adapter, and what it published at its first checkpoint."""
    recipe = Recipe.model_validate(
        {"model": {"name": str(model_folder)}, "learner": {"lora": {"rank": 4}, "device": "cpu", "threads": 1}}
    )
    run_dir = tmp_path / "lora-run"
    run_dir.mkdir()
    (run_dir / "recipe.json").write_text(recipe.model_dump_json())
    learner = Learner(
        model_folder,
        recipe.learner,
        temperature=1.0,
        reward_weights=recipe.reward_weights,
        total_steps=1,
        max_completion_tokens=96,
    )
    tensors, facts = learner.state()
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    learner.load_state(tensors, facts)
    published = learner.published()
    write_checkpoint(
        run_dir / "checkpoints",
        step=1,
        policy_version=1,
        weights_sha256=published_sha256(published),
        tensors=tensors,
        learner=facts,
        keeping=Keeping(1),
    )
    return run_dir, published


@pytest.mark.parametrize("update", [{"ablate": ["no_stop_token"]}, {"device": "cuda"}])
def test_a_lora_run_is_exported_whatever_it_was_trained_with(
    lora_run: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, update: dict[str, Any]
) -> None:
    run_dir, published = lora_run
    tree = json.loads((run_dir / "recipe.json").read_text())
    tree["learner"].update(update)
    (run_dir / "recipe.json").write_text(json.dumps(tree))
    run_export(run_dir, tmp_path / "out")
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), published)
    readable = stat.S_IMODE((tmp_path / "out" / "config.json").stat().st_mode)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == readable


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_a_lora_run_exports_merged_weights_and_an_adapter_that_peft_loads(
    lora_run: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, model_folder: Path
) -> None:
    run_dir, published = lora_run
    run_export(run_dir, tmp_path / "out")
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), published)
    ids = torch.arange(3, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        before, after = base(ids).logits, merged(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")(ids).logits
    # The merged weights are rounded to bf16, the adapter is not.
    assert (adapted - after).norm() < 0.03 * (after - before).norm()
    assert "adapter/" in (tmp_path / "out" / "README.md").read_text()
