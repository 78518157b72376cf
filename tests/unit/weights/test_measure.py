import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tersely.cli.main import app
from tersely.errors import CheckpointInvalid
from tersely.weights.measure import measure
from tersely.weights.snapshot import Snapshot


def make_run(folder: Path, count: int, rate: float = 1e-4) -> Path:
    generator = torch.Generator().manual_seed(0)
    masters = {"a": torch.randn(300, 100, generator=generator) * 0.05, "b": torch.ones(10)}
    for step in range(10, 10 * count + 1, 10):
        path = folder / "checkpoints" / f"step-{step:06d}"
        path.mkdir(parents=True)
        published = Snapshot.build(
            0,
            {name: tensor.bfloat16() for name, tensor in masters.items()},
            run_id="r",
            model_files=(),
            stop_token_ids=(),
            chunk_bytes=1024,
            incarnation=1,
        )
        save_file({f"master/{name}": tensor for name, tensor in masters.items()}, path / "state.safetensors")
        (path / "state.json").write_text(json.dumps({"weights_sha256": published.label.weights_sha256}))
        masters["a"] = masters["a"] + rate * torch.randn(300, 100, generator=generator)
    (folder / "recipe.json").write_text(json.dumps({"model": {"name": "tiny"}, "learner": {"learning_rate": 1e-6}}))
    return folder


def test_deltas_between_checkpoints_are_measured(tmp_path: Path) -> None:
    found = measure(make_run(tmp_path, 10), threads=1)["tiny@1e-06"]
    assert [(pair["from_step"], pair["to_step"]) for pair in found["pairs"]][:2] == [(10, 20), (20, 30)]
    assert len(found["pairs"]) == 9
    assert found["bit_exact"] is True
    assert found["full_bytes"] == 60_020
    assert found["ratio"] > 2
    assert 0.8 < found["over_entropy"] < 1.3
    assert 0.1 < found["merged_8_over_sum"] < 0.8


def test_the_command_prints_the_same_as_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "weights", "--checkpoints", str(make_run(tmp_path, 3)), "--json"])
    figures = json.loads(result.stdout)["tiny@1e-06"]
    assert figures["merged_8_over_sum"] is None
    assert figures["merged_pairs"] == 2
    text = CliRunner().invoke(app, ["bench", "weights", "--checkpoints", str(tmp_path / "checkpoints")]).stdout
    assert "bit-exact" in text
    assert "2 pairs of checkpoints, 10 steps apart" in text


def test_one_checkpoint_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match="holds 1 checkpoints"):
        measure(make_run(tmp_path, 1))


def test_a_checkpoint_that_is_not_what_was_published_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, 2)
    state = tmp_path / "checkpoints" / "step-000020" / "state.json"
    state.write_text(json.dumps({"weights_sha256": "0" * 64}))
    with pytest.raises(CheckpointInvalid, match="are not the weights that were published"):
        measure(tmp_path)


def test_a_checkpoint_with_a_truncated_header_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, 2)
    file = tmp_path / "checkpoints" / "step-000020" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointInvalid, match="Can't read"):
        measure(tmp_path)
