"""Checkpoints: fp32 masters, optimizer moments and the place in the run, written whole or not at all.

A checkpoint is a folder ``step-000050`` with ``state.safetensors`` and ``state.json`` (which holds the hash of the
former). It is written under a temporary name, synced, and renamed; a folder with the final name is therefore complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from tersely.errors import CheckpointInvalid
from tersely.telemetry.atomic import sync_folder, write_atomic

if TYPE_CHECKING:
    import torch

_TENSORS, _META, _PARTIAL = "state.safetensors", "state.json", ".partial"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        path: Its folder.
        step: Steps trained.
        policy_version: Version of the published weights.
        weights_sha256: Their hash.
        learner: The learner's own facts.
    """

    path: Path
    step: int
    policy_version: int
    weights_sha256: str
    learner: dict[str, Any]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Masters and moments.

        Raises:
            CheckpointInvalid: when the file does not have the hash it was written with.
        """
        file = self.path / _TENSORS
        expected = json.loads((self.path / _META).read_text())["tensors_sha256"]
        if _file_sha256(file) != expected:
            raise CheckpointInvalid(
                f"{file} does not have the hash it was written with.",
                f"Delete the folder {self.path} to resume from an earlier checkpoint.",
            )
        loaded: dict[str, torch.Tensor] = load_file(file)
        return loaded


def write_checkpoint(
    folder: Path,
    *,
    step: int,
    policy_version: int,
    weights_sha256: str,
    tensors: dict[str, torch.Tensor],
    learner: dict[str, Any],
    keep: int,
) -> Path:
    """Writes a checkpoint and removes all but the `keep` newest; returns its folder."""
    final = folder / f"step-{step:06d}"
    partial = folder / f"step-{step:06d}{_PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / _TENSORS)
    with (partial / _TENSORS).open("rb") as file:
        os.fsync(file.fileno())
    meta = {
        "step": step,
        "policy_version": policy_version,
        "weights_sha256": weights_sha256,
        "learner": learner,
        "tensors_sha256": _file_sha256(partial / _TENSORS),
    }
    write_atomic(partial / _META, json.dumps(meta, indent=2) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync_folder(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old.path)
    return final


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints, oldest first; leftovers of an interrupted write are not among them."""
    found = []
    for path in sorted(folder.glob("step-*")):
        meta_file = path / _META
        if path.suffix == _PARTIAL or not meta_file.exists():
            continue
        meta = json.loads(meta_file.read_text())
        found.append(Checkpoint(path, meta["step"], meta["policy_version"], meta["weights_sha256"], meta["learner"]))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
