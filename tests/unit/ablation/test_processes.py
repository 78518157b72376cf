"""Commands as child processes: how they end, what is known of it, and that none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from tersely.ablation.processes import LOCKS, Commands, Stopped, held_alone, wait_until_free
from tersely.errors import RunDirBusy

PARENT = """
import sys
from pathlib import Path
from tersely.ablation.processes import Commands, Stopped
folder = Path(sys.argv[1])
with Commands() as commands:
    try:
        commands.call(["bench", "--help"], folder / "log", folder / "error")
        print("ended", flush=True)
        commands.call(["scorer", "--host", "127.0.0.1"], folder / "log", folder / "error")
    except Stopped as stopped:
        print("stopped", stopped, flush=True)
"""


def test_the_output_is_kept_and_an_end_in_good_order_is_none_to_speak_of(tmp_path: Path) -> None:
    with Commands() as commands:
        assert commands.call(["--help"], tmp_path / "log", tmp_path / "error").failure == ""
        assert commands.call(["config", "--help"], tmp_path / "log", tmp_path / "error").failure == ""
    shown = (tmp_path / "log").read_text()
    assert "ablate" in shown
    assert "Look at recipes" in shown


def test_an_error_of_tersely_is_told_in_its_own_words(tmp_path: Path) -> None:
    with Commands() as commands:
        ended = commands.call(["config", "check", str(tmp_path / "no.toml")], tmp_path / "log", tmp_path / "error")
    assert ended.failure.startswith("config_file_missing: Can't read the recipe")


def test_any_other_end_names_the_code_and_the_log(tmp_path: Path) -> None:
    with Commands() as commands:
        ended = commands.call(["config", "nonsense"], tmp_path / "log", tmp_path / "error")
    assert "code 2" in ended.failure
    assert str(tmp_path / "log") in ended.failure


def test_a_signal_stops_what_runs_and_what_would_come_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ended\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopped SIGTERM\n"
        assert process.wait(60) == 0


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Commands() as commands:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            commands.check()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_ablation_of_a_directory_is_refused(tmp_path: Path) -> None:
    with held_alone(tmp_path), pytest.raises(RunDirBusy, match="ablate"), held_alone(tmp_path):
        pass
    with held_alone(tmp_path):
        pass


@pytest.mark.parametrize("name", LOCKS)
def test_a_predecessor_that_is_about_to_end_is_waited_for(tmp_path: Path, name: str) -> None:
    lock = FileLock(tmp_path / name, thread_local=False)
    lock.acquire()
    waited = threading.Thread(target=wait_until_free, args=(tmp_path, 60.0))
    waited.start()
    lock.release()
    waited.join(60)
    assert not waited.is_alive()


@pytest.mark.parametrize("name", LOCKS)
def test_a_stranger_that_stays_is_an_error(tmp_path: Path, name: str) -> None:
    with FileLock(tmp_path / name), pytest.raises(RunDirBusy, match="not ours"):
        wait_until_free(tmp_path, 0.0)
