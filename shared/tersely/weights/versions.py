"""Versions of a run's weights on disk, to be measured: its checkpoints, or what was recorded from its channel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from tersely.errors import CheckpointInvalid
from tersely.types import WeightsLabel
from tersely.weights.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import Tensor

_MASTER = "master/"
_HASH = "weights_sha256"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run's recipe says of its weights.

    Attributes:
        model: Model as the recipe names it.
        learning_rate: Peak rate of AdamW.
        data: Source of the data; empty where it does not say.
    """

    model: str
    learning_rate: float
    data: str

    @property
    def title(self) -> str:
        """MODEL@LR, e.g. ``smollm2-135m@1e-06``; of a folder only its last name."""
        return f"{Path(self.model).name}@{self.learning_rate:g}"


def find_versions(folder: Path) -> list[Path]:
    """The versions in a folder, oldest first.

    Args:
        folder: A run directory, its folder of checkpoints, or a folder of recorded versions.

    Raises:
        CheckpointInvalid: There are fewer than two.
    """
    where = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    found = sorted(path for path in where.glob("step-[0-9]*") if (path / "state.json").is_file())
    found = found or sorted(where.glob("version-[0-9]*.safetensors"))
    if len(found) < 2:
        raise CheckpointInvalid(
            f"{where} holds {len(found)} checkpoints; a delta needs two.",
            "Name a run directory with at least two checkpoints (run.checkpoint_every, run.keep_checkpoints).",
        )
    return found


def origin_of(version: Path) -> Origin | None:
    """From recipe.json beside the version or in the run directory above; None where there is none."""
    for folder in (version.parent, version.parent.parent):
        try:
            recipe = json.loads((folder / "recipe.json").read_text())
            data = recipe.get("data", {}).get("source", "")
            return Origin(recipe["model"]["name"], recipe["learner"]["learning_rate"], data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def read_version(path: Path) -> Snapshot:
    """The snapshot that the trainer published, checked by its hash.

    Of a checkpoint these are the fp32 masters rounded to bfloat16.

    Args:
        path: What `find_versions` returned.

    Raises:
        CheckpointInvalid: It can't be read, or isn't what was published.
    """
    recorded = path.is_file()
    file = path if recorded else path / "state.safetensors"
    try:
        with safe_open(file, "pt") as opened:
            expected = (opened.metadata() or {}).get(_HASH) if recorded else None
            names = [name for name in opened.keys() if recorded or name.startswith(_MASTER)]  # noqa: SIM118
            tensors = {name.removeprefix(_MASTER): _published(opened.get_tensor(name), recorded) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointInvalid(f"Can't read {path}: {error}", "Name checkpoints that are whole.") from None
    if not tensors:
        raise CheckpointInvalid(f"{path} holds no full masters.", "Name checkpoints of a run without LoRA.")
    snapshot = Snapshot.build(
        version_number(path),
        tensors,
        run_id="bench",
        model_files=(),
        stop_token_ids=(),
        chunk_bytes=1 << 20,
        incarnation=0,
    )
    if not recorded:
        try:
            expected = json.loads((path / "state.json").read_text())[_HASH]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            raise CheckpointInvalid(f"{path / 'state.json'} is damaged.", "Name checkpoints that are whole.") from None
    if snapshot.label.weights_sha256 != expected:
        raise CheckpointInvalid(
            f"The weights in {path} are not the weights that were published ({str(expected)[:8]}).",
            "The file is damaged, or this version of tersely rounds or names tensors in another way.",
        )
    return snapshot


def write_version(folder: Path, label: WeightsLabel, tensors: Mapping[str, Tensor]) -> Path:
    """Writes one published version into a folder, for `read_version`.

    Args:
        folder: Is there already.
        label: Version and hash.
        tensors: As published.

    Returns:
        The file.
    """
    from safetensors.torch import save_file

    path = folder / f"version-{label.policy_version:06d}.safetensors"
    part = path.with_suffix(".part")
    save_file(dict(tensors), part, {_HASH: label.weights_sha256})
    part.replace(path)
    return path


def version_number(path: Path) -> int:
    """Policy version, or step of a checkpoint, from the name."""
    return int(path.stem.rpartition("-")[2])


def _published(tensor: Tensor, recorded: bool) -> Tensor:
    import torch

    return tensor if recorded else tensor.to(torch.bfloat16)
