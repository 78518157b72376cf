"""A policy as a normal Hugging Face folder: at a run's end in its directory, and by `tersely export` anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tersely.config import Recipe
from tersely.config.load import read_recipe
from tersely.errors import CheckpointInvalid, RunDirMissing
from tersely.models.locate import locate_model
from tersely.models.provenance import PROVENANCE_FILE
from tersely.trainer.card import base_model, model_card
from tersely.trainer.checkpoint import Checkpoint, list_checkpoints
from tersely.trainer.export_target import check_target, files_in, put_in_place
from tersely.trainer.masters import MASTER
from tersely.trainer.provenance import Provenance, provenance_of, public_recipe
from tersely.types import PolicyVersion, WeightsLabel
from tersely.weights.digest import TensorHash, tensor_sha256, weights_sha256

if TYPE_CHECKING:
    from torch import Tensor

Adapter = tuple[dict[str, Any], dict[str, "Tensor"]]
"""Config and tensors of a LoRA adapter, as peft keeps them."""

log = structlog.get_logger(__name__)

_WEIGHTS = "model.safetensors"
_CARD = "README.md"
_NOT_COPIED = (".safetensors", ".safetensors.index.json", ".bin", ".gguf", ".pt", ".pth", ".py", _CARD)
_ADAPTER = "adapter"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_MADE = {_WEIGHTS, _CARD, PROVENANCE_FILE, f"{_ADAPTER}/{_ADAPTER_CONFIG}", f"{_ADAPTER}/{_ADAPTER_WEIGHTS}"}


def export_policy(
    model_folder: Path,
    weights: Mapping[str, Tensor],
    target: Path,
    provenance: Provenance,
    *,
    adapter: Adapter | None = None,
) -> Path:
    """Writes the published bf16 weights beside the base model's config and tokenizer; replaces an older export.

    Files that no export wrote stay where they are.

    Args:
        model_folder: Folder the run began with.
        weights: Published tensors, tied ones once.
        target: Folder to make, whole or not at all.
        provenance: For the model card and `tersely.json`.
        adapter: What `Learner.adapter` gives; becomes the folder `adapter`, in peft's format.
    """
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in _copied(model_folder):
        shutil.copyfile(file, partial / file.name)
    _state_dtype(partial / "config.json")
    _save(weights, partial / _WEIGHTS, {"format": "pt"})
    if adapter is not None:
        _write_adapter(partial / _ADAPTER, adapter, provenance)
    card = model_card(provenance, model_folder, adapter=adapter is not None)
    (partial / _CARD).write_text(card, encoding="utf-8")
    files = files_in(partial) | {PROVENANCE_FILE}
    facts = {**provenance.to_json(), "files": sorted(files)}
    (partial / PROVENANCE_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    put_in_place(partial, target, files)
    return target


def run_export(run_dir: Path, to: Path, checkpoint: str = "last") -> dict[str, Any]:
    """Exports a policy of a run, finished or not; the run is only read.

    Args:
        run_dir: Directory of the run.
        to: Folder to make, absolute; an older export there is replaced.
        checkpoint: `last` (the final policy, or the newest checkpoint of a run that goes on), `best`, or a step.

    Returns:
        What was exported: `path`, `run_id`, `step`, `steps`, `policy_version`, `weights_sha256`, `finished`.

    Raises:
        RunDirMissing: There is no run, or it has no such checkpoint yet.
        CheckpointInvalid: What is on disk does not have the hash it was published with.
        ConfigValue: The folder belongs to a run or holds files that no export wrote; or the run's recipe is damaged.
    """
    recipe_file = run_dir / "recipe.json"
    if not recipe_file.exists():
        raise RunDirMissing(f"There is no run in {run_dir}.", "Give the directory of a run; `tersely runs` lists them.")
    recipe = read_recipe(recipe_file)
    report = _read(run_dir / "report.json")
    found = _choose(run_dir, checkpoint)
    newest = max((one.policy_version for one in list_checkpoints(run_dir / "checkpoints")), default=-1)
    finished = report is not None and report["policy_version"] >= newest
    model_folder = locate_model(recipe.model.name, recipe.model.revision)
    check_target(to, model_folder, {file.name for file in _copied(model_folder)} | _MADE)
    weights, adapter = _weights(run_dir, found, recipe, model_folder)
    # A merged adapter may differ in last bits from what another kind of device published.
    sha256 = published_sha256(weights)
    label = WeightsLabel(PolicyVersion(found.policy_version), sha256)
    run_id = (report or _read(run_dir / "run.json") or {}).get("run_id", "unknown")
    provenance = provenance_of(run_dir, recipe, run_id, found.step, label)
    export_policy(model_folder, weights, to, provenance, adapter=adapter)
    return {
        "path": str(to),
        "run_id": run_id,
        "step": found.step,
        "steps": recipe.run.steps,
        "policy_version": found.policy_version,
        "weights_sha256": sha256,
        "finished": finished,
    }


def _copied(model_folder: Path) -> list[Path]:
    """The base model's files that go into an export as they are."""
    return sorted(p for p in model_folder.iterdir() if p.is_file() and not p.name.endswith(_NOT_COPIED))


def _choose(run_dir: Path, wanted: str) -> Checkpoint:
    # By version and not by step: after a roll-back the steps begin again, versions never do.
    found = sorted(list_checkpoints(run_dir / "checkpoints"), key=lambda one: one.policy_version)
    if not found:
        raise RunDirMissing(
            f"The run in {run_dir} has written no checkpoint yet.",
            "Wait for the first one (run.checkpoint_every), or for the end of the run.",
        )
    if wanted == "last":
        return found[-1]
    if wanted == "best":
        best = _read(run_dir / "best.json")
        if best is None:
            raise RunDirMissing(
                f"The run in {run_dir} has no best checkpoint: it was not evaluated on the way.",
                "Set evaluation.every in the recipe of the next run, or take --checkpoint last.",
            )
        found = [one for one in found if one.weights_sha256 == best["weights_sha256"]] or found
        wanted = str(best["step"])
    chosen = [one for one in found if str(one.step) == wanted]
    if not chosen:
        steps = ", ".join(str(one.step) for one in found)
        raise RunDirMissing(f"The run has no checkpoint of step {wanted}; it has {steps}.", "Name one of them.")
    return chosen[-1]


def _weights(
    run_dir: Path, checkpoint: Checkpoint, recipe: Recipe, model_folder: Path
) -> tuple[dict[str, Tensor], Adapter | None]:
    """What was published at a checkpoint: from the finished run's own export, or from the state of its learner."""
    ready = run_dir / "policy" / _WEIGHTS
    try:
        if recipe.learner.lora is not None:
            return _merged(checkpoint, recipe, model_folder)
        if ready.exists():
            try:
                weights = load_file(ready)
                if published_sha256(weights) == checkpoint.weights_sha256:
                    return weights, None
            except SafetensorError as error:  # the checkpoint has it all
                log.warning("the run's own export is damaged", path=str(ready), error=str(error))
        weights = _rounded(checkpoint.tensors())
    except (OSError, SafetensorError) as error:
        raise CheckpointInvalid(
            f"The checkpoint {checkpoint.path.name} can't be read: {error}.",
            "If the run goes on, it may have removed it just now: try again.",
        ) from None
    if published_sha256(weights) != checkpoint.weights_sha256:
        raise CheckpointInvalid(
            f"The weights of {checkpoint.path.name} are not those that the run published.",
            "Take another checkpoint.",
        )
    return weights, None


def _rounded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masters of a learner that trains all weights, as they are published."""
    import torch

    masters = {name: tensor for name, tensor in state.items() if name.startswith(f"{MASTER}/")}
    return {name.removeprefix(f"{MASTER}/"): tensor.to(torch.bfloat16) for name, tensor in masters.items()}


def _merged(checkpoint: Checkpoint, recipe: Recipe, model_folder: Path) -> tuple[dict[str, Tensor], Adapter | None]:
    """The base model with a low-rank adapter merged in, and the adapter."""
    from tersely.trainer.learner import Learner

    learner = Learner(
        model_folder,
        # What a run was trained on, and with, does not matter any more; the machine that exports may be another one.
        recipe.learner.model_copy(update={"kl_coefficient": 0.0, "ablate": (), "device": "cpu"}),
        temperature=recipe.sampling.temperature,
        reward_weights=recipe.reward_weights,
        total_steps=recipe.run.steps,
        max_completion_tokens=recipe.max_completion_tokens,
    )
    learner.load_state(checkpoint.tensors(), checkpoint.learner)
    return learner.published(), learner.adapter()


def _write_adapter(folder: Path, adapter: Adapter, provenance: Provenance) -> None:
    config, tensors = adapter
    base = public_recipe(provenance.recipe)["model"]["name"]
    folder.mkdir()
    settings = {**config, "base_model_name_or_path": base_model(base)}
    (folder / _ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    _save(tensors, folder / _ADAPTER_WEIGHTS)


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes safetensors with the mode that any new file has here; the library's own is readable to nobody else."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    path.chmod(mode)


def published_sha256(weights: Mapping[str, Tensor]) -> str:
    """The hash that a run gives these bf16 tensors when it publishes them."""
    import torch

    return weights_sha256(
        TensorHash(
            name, "BF16", tensor.shape, tensor_sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        )
        for name, tensor in weights.items()
    )


def _state_dtype(config: Path) -> None:
    """Says bf16 in config.json, as the weights are now."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    for key in {"dtype"} | ({"torch_dtype"} & settings.keys()):
        settings[key] = "bfloat16"
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    value: dict[str, Any] = json.loads(path.read_text())
    return value
