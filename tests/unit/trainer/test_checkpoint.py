from pathlib import Path

import pytest
import torch

from tersely.errors import CheckpointInvalid
from tersely.trainer.checkpoint import list_checkpoints, write_checkpoint


def write(folder: Path, step: int, keep: int = 2) -> dict[str, torch.Tensor]:
    tensors = {"w": torch.full((3, 2), float(step)), "moment": torch.arange(4.0) / 3}
    write_checkpoint(
        folder,
        step=step,
        policy_version=step,
        weights_sha256="ab",
        tensors=tensors,
        learner={"updates": step},
        keep=keep,
    )
    return tensors


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


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (checkpoint,) = list_checkpoints(tmp_path)
    file = checkpoint.path / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointInvalid, match="hash"):
        checkpoint.tensors()
