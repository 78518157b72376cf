"""Files of weights that broke off or lie in their header: a clear error before anything is loaded, never weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tersely.errors import CheckpointInvalid, ModelInvalid
from tersely.models.load import load_policy
from tersely.models.locate import locate_model
from tersely.weights.versions import read_version

CUTS = {
    "nothing left": lambda header: 0,
    "in the length": lambda header: 5,
    "after the length": lambda header: 8,
    "in the first name": lambda header: 12,
    "in the middle of the header": lambda header: 8 + header // 2,
    "one byte of the header missing": lambda header: 8 + header - 1,
    "no data": lambda header: 8 + header,
    "one byte of data": lambda header: 9 + header,
}


def header_bytes(path: Path) -> int:
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    return int(length)


def rewrite_header(path: Path, change: str) -> None:
    data = path.read_bytes()
    length = header_bytes(path)
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = next(name for name in header if name != "__metadata__")
    if change == "not JSON":
        text = data[8 : 8 + length - 1] + b"\xff"
    else:
        if change == "offsets beyond the end":
            header[name]["data_offsets"][1] += 1 << 40
        elif change == "no offsets":
            del header[name]["data_offsets"]
        elif change == "a list":
            header = [header]
        text = json.dumps(header).encode()
    claimed = {"longer than the file": 1 << 40, "longer than any file": (1 << 64) - 1, "empty": 0}.get(
        change, len(text)
    )
    path.write_bytes(struct.pack("<Q", claimed) + text + rest)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_weights_that_break_off_are_refused(tiny_copy: Path, cut) -> None:
    weights = tiny_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: cut(header_bytes(weights))])
    for load in (lambda: locate_model(str(tiny_copy)), lambda: load_policy(tiny_copy)):
        with pytest.raises(ModelInvalid, match="not a whole safetensors file"):
            load()


@pytest.mark.parametrize(
    "change",
    [
        "longer than the file",
        "longer than any file",
        "empty",
        "not JSON",
        "a list",
        "offsets beyond the end",
        "no offsets",
    ],
)
def test_a_header_that_lies_is_refused(tiny_copy: Path, change: str) -> None:
    rewrite_header(tiny_copy / "model.safetensors", change)
    with pytest.raises(ModelInvalid, match="not a whole safetensors file"):
        load_policy(tiny_copy)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_a_recorded_version_that_breaks_off_is_refused(tiny_copy: Path, tmp_path: Path, cut) -> None:
    whole = (tiny_copy / "model.safetensors").read_bytes()
    path = tmp_path / "version-000001.safetensors"
    path.write_bytes(whole[: cut(header_bytes(tiny_copy / "model.safetensors"))])
    with pytest.raises(CheckpointInvalid):
        read_version(path)
