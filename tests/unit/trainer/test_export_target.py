"""Where an export is written: nothing of anybody's is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tersely.cli.main import app
from tersely.config import Recipe
from tersely.errors import ConfigValue
from tersely.models.provenance import read_provenance
from tersely.testing.modules import load_module
from tersely.trainer.export import export_policy, published_sha256, run_export
from tersely.trainer.provenance import provenance_of
from tersely.types import PolicyVersion, WeightsLabel

_bench = load_module(Path(__file__).with_name("export_bench.py"))
logging_as_before = _bench.logging_as_before
STEPS = _bench.STEPS
model_folder = _bench.model_folder
published = _bench.published
run_dir = _bench.run_dir
equal = _bench.equal


def test_the_command_replaces_an_export_but_nothing_else(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        app(["export", str(run_dir), "--to", str(out), "--json"], standalone_mode=False)
        assert json.loads(capsys.readouterr().out)["path"] == str(out)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "me.jpg").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        app(["export", str(run_dir), "--to", str(photos)])
    assert ended.value.code == 2
    assert [file.name for file in photos.iterdir()] == ["me.jpg"]


def test_files_of_the_user_in_an_older_export_are_named_and_stay(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_export(run_dir, out)
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref")
    (out / "notes.md").write_text("mine")
    with pytest.raises(ConfigValue, match=r"\.git/HEAD, notes\.md"):
        run_export(run_dir, out, "2")
    assert (out / "notes.md").read_text() == "mine"
    assert (read_provenance(out) or {})["step"] == 4
    (out / "notes.md").unlink()
    (out / ".git" / "HEAD").unlink()
    (out / ".git").rmdir()
    run_export(run_dir, out, "2")
    assert (read_provenance(out) or {})["step"] == 2


@pytest.mark.parametrize("mark", ["run.json", "log/run.wal"])
@pytest.mark.parametrize("inside", ["", "policy", "some/where"])
def test_no_run_directory_is_written_into(run_dir: Path, tmp_path: Path, mark: str, inside: str) -> None:
    other = tmp_path / "other-run"
    (other / mark).parent.mkdir(parents=True)
    (other / mark).write_text("{}")
    for run in (run_dir, other):
        before = sorted(run.rglob("*"))
        with pytest.raises(ConfigValue, match="inside the run directory"):
            run_export(run_dir, run / inside)
        assert sorted(run.rglob("*")) == before


def test_the_base_model_is_not_replaced_by_what_came_of_it(run_dir: Path, model_folder: Path) -> None:
    with pytest.raises(ConfigValue, match="began with"):
        run_export(run_dir, model_folder)
    assert not (model_folder / "tersely.json").exists()


def test_a_run_replaces_its_own_policy_but_leaves_what_was_put_beside_it(
    run_dir: Path, model_folder: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    recipe = Recipe.model_validate_json((run_dir / "recipe.json").read_text())
    policy = run_dir / "policy"
    for step in STEPS:
        label = WeightsLabel(PolicyVersion(step), published_sha256(published[step]))
        export_policy(model_folder, published[step], policy, provenance_of(run_dir, recipe, "r-1", step, label))
        (policy / "mine").mkdir(exist_ok=True)
        (policy / "mine" / "notes.md").write_text("mine")
    assert (policy / "mine" / "notes.md").read_text() == "mine"
    assert equal(load_file(policy / "model.safetensors"), published[4])
    assert (read_provenance(policy) or {})["step"] == 4
    assert not (run_dir / "policy.partial").exists()
