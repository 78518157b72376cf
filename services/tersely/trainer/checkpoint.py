"""Checkpoints: fp32 masters, optimizer moments and the place in the run, written whole or not at all.

A checkpoint is a folder ``step-000050`` with ``state.safetensors`` and ``state.json`` (which holds the hash of the
former). It is written under a temporary name, synced, and renamed, and it is removed under a temporary name too: a
folder with the final name is therefore complete.
There must be room for it before it is begun; where the disk fills up meanwhile, what was written of it is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tersely.errors import CheckpointInvalid
from tersely.telemetry.atomic import sync_folder, write_atomic
from tersely.telemetry.disk import disk_errors, need_room
from tersely.testing.faultpoints import reach

if TYPE_CHECKING:
    import torch

_TENSORS, _META, _PARTIAL = "state.safetensors", "state.json", ".partial"
_META_KINDS = {"step": int, "policy_version": int, "weights_sha256": str, "learner": dict, "tensors_sha256": str}
_HEADER_BYTES = 1 << 20  # names and shapes of the tensors, and state.json


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
        expected = _read_meta(self.path / _META)["tensors_sha256"]
        if _file_sha256(file) != expected:
            raise CheckpointInvalid(
                f"{file} does not have the hash it was written with.",
                f"Delete the folder {self.path} to resume from an earlier checkpoint.",
            )
        try:
            loaded: dict[str, torch.Tensor] = load_file(file)
        except SafetensorError as error:
            raise CheckpointInvalid(
                f"{file} is not a safetensors file: {error}",
                f"Delete the folder {self.path} to resume from an earlier checkpoint.",
            ) from None
        return loaded


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which checkpoints stay.

    Attributes:
        newest: So many of the newest stay.
        protect: Steps whose checkpoints stay besides, e.g. the best one.
        rollbacks: Per step the step that the run went back to after it. Such a target stays as long as a resume from
            one of the newest checkpoints would meet the roll-back.
        counts: Whether a checkpoint is one that the run has wherever it was interrupted. One that it has for the sake
            of an interruption is not among the newest, and stays only until there is a newer one.
    """

    newest: int
    protect: frozenset[int] = frozenset()
    rollbacks: Mapping[int, int] = field(default_factory=dict)
    counts: Callable[[Checkpoint], bool] = lambda checkpoint: True

    def of(self, found: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Those that stay, of checkpoints in the order of their steps."""
        newest = [checkpoint for checkpoint in found if self.counts(checkpoint)][-self.newest :] or list(found[-1:])
        needed = {target for step, target in self.rollbacks.items() if step >= newest[0].step} if newest else set()
        return [
            checkpoint
            for checkpoint in found
            if checkpoint in newest or checkpoint is found[-1] or checkpoint.step in self.protect | needed
        ]


def write_checkpoint(
    folder: Path,
    *,
    step: int,
    policy_version: int,
    weights_sha256: str,
    tensors: dict[str, torch.Tensor],
    learner: dict[str, Any],
    keeping: Keeping,
    check: Callable[[], object] = lambda: None,
) -> Path:
    """Writes a checkpoint and removes older ones that nothing needs; returns its folder.

    Args:
        folder: Of all checkpoints.
        step: Steps trained.
        policy_version: Version of the published weights.
        weights_sha256: Their hash.
        tensors: Masters and moments, on the CPU.
        learner: The learner's own facts, as JSON values.
        keeping: Which checkpoints stay.
        check: Called before this one gets its final name, and before others are removed; raises where neither may be.

    Raises:
        DiskFull: The checkpoints are as they were before.
    """
    final = folder / f"step-{step:06d}"
    # A trainer that slept while another took over must not write into what that one is writing.
    partial = folder / f"step-{step:06d}.{secrets.token_hex(4)}{_PARTIAL}"
    remove_partial(folder)
    folder.mkdir(parents=True, exist_ok=True)
    what = f"the checkpoint of step {step}"
    size = sum(tensor.nbytes for tensor in tensors.values()) + _HEADER_BYTES
    try:
        with disk_errors(what):
            need_room(folder, size, f"The checkpoint of step {step}")
            partial.mkdir()
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / _TENSORS)
            with (partial / _TENSORS).open("rb") as file:
                os.fsync(file.fileno())
            reach("inside_checkpoint")
            meta = {
                "step": step,
                "policy_version": policy_version,
                "weights_sha256": weights_sha256,
                "learner": learner,
                "tensors_sha256": _file_sha256(partial / _TENSORS),
            }
            write_atomic(partial / _META, json.dumps(meta, indent=2) + "\n")
        check()
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replaced = _set_aside(final) if final.exists() else None
    partial.rename(final)
    sync_folder(folder)
    if replaced is not None:
        shutil.rmtree(replaced)
    reach("after_checkpoint")
    check()
    prune(folder, keeping)
    reach("after_prune")
    return final


def remove_partial(folder: Path) -> None:
    """Removes what a crash left of a checkpoint that was being written or removed."""
    for partial in folder.glob(f"step-*{_PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)


def prune(folder: Path, keeping: Keeping) -> None:
    """Removes the checkpoints that nothing needs."""
    found = list_checkpoints(folder)
    kept = keeping.of(found)
    for checkpoint in found:
        if checkpoint not in kept:
            shutil.rmtree(_set_aside(checkpoint.path))


def _set_aside(checkpoint: Path) -> Path:
    """Takes the final name away: a kill while its files are removed must not leave half of them under that name."""
    return checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.old{_PARTIAL}"))


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints, oldest first; leftovers of an interrupted write are not among them."""
    found = []
    for path in sorted(folder.glob("step-*")):
        meta_file = path / _META
        if path.suffix == _PARTIAL or not (meta_file.exists() and (path / _TENSORS).exists()):
            continue
        meta = _read_meta(meta_file)
        found.append(Checkpoint(path, meta["step"], meta["policy_version"], meta["weights_sha256"], meta["learner"]))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _read_meta(file: Path) -> dict[str, Any]:
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict) or not all(isinstance(meta.get(key), kind) for key, kind in _META_KINDS.items()):
        raise CheckpointInvalid(
            f"{file} is damaged, or was not written by tersely.",
            f"Delete the folder {file.parent} to resume from an earlier checkpoint.",
        )
    return meta


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
