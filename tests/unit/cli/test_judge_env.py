from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tersely.cli import judge_env


@pytest.mark.parametrize("line", ["judge-file a -o b", "judge", "judge --trainer h:1", "judge --set a=b"])
def test_what_judges_needs_the_environment(line: str) -> None:
    assert judge_env.judges(line.split())


@pytest.mark.parametrize(
    "line", ["", "score a", "judge calibrate a", "judge drift", "judge --help", "judge-file --help"]
)
def test_everything_else_stays(line: str) -> None:
    assert not judge_env.judges(line.split())


def test_the_environment_is_the_named_one_or_lies_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(judge_env.JUDGE_ENV, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert judge_env.judge_python() is None
    for name in (".venv-judge", "named"):
        python = tmp_path / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch(mode=0o755)
    assert judge_env.judge_python() == tmp_path / ".venv-judge" / "bin" / "python"
    monkeypatch.setenv(judge_env.JUDGE_ENV, str(tmp_path / "named"))
    assert judge_env.judge_python() == tmp_path / "named" / "bin" / "python"
    monkeypatch.setenv(judge_env.JUDGE_ENV, str(tmp_path / "nowhere"))
    assert judge_env.judge_python() is None


def test_the_same_command_goes_on_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch(mode=0o755)
    monkeypatch.setenv(judge_env.JUDGE_ENV, str(tmp_path))
    monkeypatch.setattr(judge_env, "find_spec", lambda name: None)
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(judge_env.os, "execve", lambda path, words, environment: started.append((words, environment)))
    judge_env.enter_judge_environment(["judge-file", "a"])
    judge_env.enter_judge_environment(["score", "a"])
    [(words, environment)] = started
    assert words == [str(python), "-m", "tersely.cli", "judge-file", "a"]
    monkeypatch.setenv(judge_env.ENTERED, environment[judge_env.ENTERED])
    judge_env.enter_judge_environment(["judge-file", "a"])
    assert len(started) == 1
