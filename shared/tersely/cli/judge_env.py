"""The judge's own environment: DeepEval can't live beside transformers, so its commands go on in another Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

JUDGE_ENV = "TERSELY_JUDGE_ENV"
BESIDE = ".venv-judge"
ENTERED = "TERSELY_JUDGE_ENV_ENTERED"


def enter_judge_environment(arguments: Sequence[str]) -> None:
    """Goes on as the same command in the judge's environment, if it is one that judges and this Python can't.

    The process stays the same: its id, its open files, its environment. Does nothing where DeepEval can be imported
    here, or where there is no such environment: then the command itself says what is missing.

    Args:
        arguments: The command line without the program.
    """
    if not judges(arguments) or os.environ.get(ENTERED) or find_spec("deepeval") is not None:
        return
    python = judge_python()
    if python is None:
        return
    environment = {**os.environ, ENTERED: "1"}
    os.execve(python, [str(python), "-m", "tersely.cli", *arguments], environment)


def judges(arguments: Sequence[str]) -> bool:
    """Whether a command line runs the judge itself; `judge calibrate` and `judge drift` start it as they need it."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if "--help" in rest:
        return False
    return command == "judge-file" or (command == "judge" and (not rest or rest[0].startswith("-")))


def judge_python() -> Path | None:
    """Python of the judge's environment: that of $TERSELY_JUDGE_ENV, else of `.venv-judge` beside the running one."""
    named = os.environ.get(JUDGE_ENV)
    folder = Path(named) if named else Path(sys.prefix).parent / BESIDE
    python = folder / "bin" / "python"
    return python if os.access(python, os.X_OK) else None
