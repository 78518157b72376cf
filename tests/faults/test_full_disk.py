"""A disk that fills up: the trainer ends in good order, what it had written stands, and there it goes on later."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tersely.errors import DiskFull
from tersely.testing.services import Services
from tersely.trainer.checkpoint import list_checkpoints
from tersely.trainer.history import fold
from tersely.trainer.replay import run_replay
from tersely.trainer.wal import read_records

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
STEPS = 9
SETS = (
    f"run.steps={STEPS}",
    "run.groups_per_step=2",
    "run.group_size=4",
    "run.checkpoint_every=3",
    "run.keep_checkpoints=3",
    "rollout.engine=stub",
    "evaluation.prompts=0",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class SmallDisk:
    """Room for the run and for one checkpoint or two: a disk of its own, or where none can be mounted, short files."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self.path.mkdir()
        self._mounted = self._mount("size=4m")
        self.file_limit = 0 if self._mounted else 1_000_000

    def grow(self) -> None:
        self.file_limit = 0
        assert not self._mounted or self._mount("remount,size=64m")

    def close(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.path)], check=True)

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def check_end(services: Services, trainer: subprocess.Popen[bytes]) -> None:
    """The trainer ends with DiskFull, and what it leaves is whole."""
    assert trainer.wait(timeout=240) == DiskFull.exit_code, services.output(trainer)
    assert "error[disk_full]" in services.output(trainer)
    assert "Traceback" not in services.output(trainer)
    checkpoints = services.run_dir / "checkpoints"
    assert not list(checkpoints.glob("*.partial"))
    for checkpoint in list_checkpoints(checkpoints):
        assert checkpoint.tensors()
    logged = fold(read_records(services.run_dir / "log" / "run.wal"))
    assert 0 < logged.last_step <= STEPS


def finish(services: Services) -> None:
    trainer = services.start_trainer(resume=True)
    assert trainer.wait(timeout=240) == 0, services.output(trainer)
    groups = services.report()["groups"]
    assert groups["trained"] == STEPS * 2
    assert groups["in_flight"] == 0
    replayed = run_replay(services.run_dir)
    assert replayed["differing_step"] is None
    assert replayed["final_weights_sha256"] == services.report()["final_weights_sha256"]


def test_a_checkpoint_that_does_not_fit_ends_the_run_which_goes_on_once_there_is_room(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path)
    try:
        with Services(tmp_path / "services", TINY, SETS, run_dir=disk.path / "run") as services:
            trainer = services.start_trainer(resume=False, file_limit=disk.file_limit)
            check_end(services, trainer)
            disk.grow()
            finish(services)
            assert list_checkpoints(services.run_dir / "checkpoints")[-1].step == STEPS
    finally:
        disk.close()


@pytest.mark.parametrize("limit", [16_000, 60_000])
def test_log_events_or_samples_that_do_not_fit_end_the_run_which_goes_on_once_there_is_room(
    tmp_path: Path, limit: int
) -> None:
    with Services(tmp_path, TINY, SETS) as services:
        check_end(services, services.start_trainer(resume=False, file_limit=limit))
        finish(services)
