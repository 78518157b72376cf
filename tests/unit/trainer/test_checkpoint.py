import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import SafetensorError

from tersely.errors import CheckpointInvalid, DiskFull
from tersely.trainer import checkpoint as module
from tersely.trainer.checkpoint import Keeping, list_checkpoints, write_checkpoint


def write(folder: Path, step: int, keep: int = 2, **more: Any) -> dict[str, torch.Tensor]:
    tensors = {"w": torch.full((3, 2), float(step)), "moment": torch.arange(4.0) / 3}
    write_checkpoint(
        folder,
        step=step,
        policy_version=step,
        weights_sha256="ab",
        tensors=tensors,
        learner={"updates": step},
        keeping=Keeping(keep, **more),
    )
    return tensors


def steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(folder)]


def test_a_checkpoint_comes_back_to_the_bit(tmp_path: Path) -> None:
    tensors = write(tmp_path, 3)
    (checkpoint,) = list_checkpoints(tmp_path)
    loaded = checkpoint.tensors()
    assert (checkpoint.step, checkpoint.policy_version, checkpoint.learner) == (3, 3, {"updates": 3})
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        write(tmp_path, step)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [10, 100]


def test_an_interrupted_write_is_not_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "step-000002.partial").mkdir()
    (tmp_path / "step-000003").mkdir()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [1]
    write(tmp_path, 2)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [1, 2]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_checkpoint_that_a_kill_left_half_removed_is_not_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    write(tmp_path, 1)

    def killed_among_its_files(path: Path, **options: object) -> None:
        (path / "state.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_among_its_files)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 1 if replaced else 2, keep=1)
    for checkpoint in list_checkpoints(tmp_path):
        checkpoint.tensors()
    assert steps(tmp_path) == [1 if replaced else 2]
    write(tmp_path, 3, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_a_folder_without_tensors_is_not_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "step-000002" / "state.safetensors").unlink()
    assert steps(tmp_path) == [1]


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (checkpoint,) = list_checkpoints(tmp_path)
    file = checkpoint.path / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointInvalid, match="hash"):
        checkpoint.tensors()


def test_protected_checkpoints_outlive_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25):
        write(tmp_path, step, protect=frozenset({10}))
    assert steps(tmp_path) == [10, 20, 25]


def test_the_target_of_a_roll_back_stays_as_long_as_a_kept_checkpoint_lies_before_the_roll_back(tmp_path: Path) -> None:
    kept = []
    for step in (5, 10, 15, 20, 25):
        write(tmp_path, step, rollbacks={12: 5} if step > 10 else {})
        kept.append(steps(tmp_path))
    assert kept == [[5], [5, 10], [5, 10, 15], [15, 20], [20, 25]]


class Usage(NamedTuple):
    free: int


def too_little_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shutil, "disk_usage", lambda folder: Usage(100))


def full_while_tensors_are_written(patch: pytest.MonkeyPatch) -> None:
    def save(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    patch.setattr(module, "save_file", save)


def full_while_facts_are_written(patch: pytest.MonkeyPatch) -> None:
    def write_facts(path: Path, data: str) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    patch.setattr(module, "write_atomic", write_facts)


@pytest.mark.parametrize("fault", [too_little_room, full_while_tensors_are_written, full_while_facts_are_written])
def test_a_full_disk_leaves_the_checkpoints_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    write(tmp_path, 5)
    with monkeypatch.context() as patch:
        fault(patch)
        with pytest.raises(DiskFull, match="checkpoint of step 10"):
            write(tmp_path, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]
    write(tmp_path, 10)
    assert steps(tmp_path) == [5, 10]


def test_what_another_failure_left_is_removed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: str) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(module, "write_atomic", refuse)
    with pytest.raises(PermissionError):
        write(tmp_path, 10)
    assert list(tmp_path.iterdir()) == []
