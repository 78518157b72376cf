"""Works the cells off: trains what is not trained, measures what is not measured, keeps what is there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tersely.ablation.cells import CellDir
from tersely.ablation.plan import Cell, Matrix
from tersely.ablation.processes import Ended, wait_until_free
from tersely.errors import RunDirMissing
from tersely.view.figures import duration

POLL_SECONDS = 0.5


class Runner(Protocol):
    """Runs commands of tersely; see `tersely.ablation.processes.Commands`."""

    def check(self) -> None:
        """Raises once all is to end."""

    def call(self, words: list[str], log: Path, error_file: Path) -> Ended:
        """Runs one to its end."""


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """A cell after its turn.

    Attributes:
        cell: Which.
        directory: Where it is.
        failure: Why it has no evaluation, in one line; empty when it has one.
        kept: It was there before.
    """

    cell: Cell
    directory: CellDir
    failure: str = ""
    kept: bool = False


def run_matrix(
    matrix: Matrix, folder: Path, commands: Runner, *, parallel: int = 1, say: Callable[[str], None] = lambda line: None
) -> list[CellOutcome]:
    """Runs all cells; one that fails does not keep the others from running.

    Args:
        matrix: What to run.
        folder: The ablation's directory; cells are in `cells/`.
        commands: Runs `tersely up` and `tersely evaluate`.
        parallel: Cells at a time.
        say: Takes a line about each beginning and end.

    Returns:
        One outcome per cell, in the matrix's order.

    Raises:
        RunDirNotEmpty: A cell's directory holds a run with other settings; nothing was started then.
        RunDirBusy: Somebody else works in a cell's directory.
        Stopped: A signal came.
    """
    directories = [CellDir(folder / "cells" / cell.name) for cell in matrix.cells]
    for cell, directory in zip(matrix.cells, directories, strict=True):
        directory.prepare(cell, matrix.measure.how)
    total = len(matrix.cells)

    def work(number: int) -> CellOutcome:
        cell, directory = matrix.cells[number], directories[number]
        state = directory.state
        if state == "measured":
            return CellOutcome(cell, directory, kept=True)
        head = f"[{number + 1}/{total}] {cell.name}"
        began = time.monotonic()
        if state != "trained":
            commands.check()
            say(f"{head}: {'goes on' if state == 'begun' else 'trains'}")
            failure = _train(matrix, cell, directory, commands)
            if failure:
                say(f"{head}: failed: {failure}")
                return CellOutcome(cell, directory, failure)
        failure = _evaluate(matrix, cell, directory, commands, baselines=number == 0)
        took = duration(time.monotonic() - began)
        say(f"{head}: {f'failed: {failure}' if failure else f'done in {took}'}")
        return CellOutcome(cell, directory, failure)

    with ThreadPoolExecutor(parallel, thread_name_prefix="cell") as pool:
        futures = [pool.submit(work, number) for number in range(total)]
        try:
            _watch(futures)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]


def measured_so_far(matrix: Matrix, folder: Path) -> list[CellOutcome]:
    """The outcomes as they stand, without running anything.

    Raises:
        RunDirMissing: There is no ablation in the directory.
        RunDirNotEmpty: A cell's directory holds a run with other settings.
    """
    if not (folder / "cells").is_dir():
        raise RunDirMissing(f"There is no ablation in {folder}.", "Check --dir, or leave --report-only out.")
    outcomes = []
    for cell in matrix.cells:
        directory = CellDir(folder / "cells" / cell.name)
        directory.check(cell)
        state = directory.state
        outcomes.append(CellOutcome(cell, directory, "" if state == "measured" else f"not measured yet ({state})"))
    return outcomes


def _watch(futures: list[Future[CellOutcome]]) -> None:
    """Waits for all, or raises what the first broken one raised; wakes often, so that signals are seen."""
    left = set(futures)
    while left:
        done, left = wait(left, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()


def _train(matrix: Matrix, cell: Cell, directory: CellDir, commands: Runner) -> str:
    run = directory.run
    wait_until_free(run.path)
    words = ["up", str(matrix.recipe_path), "--run-dir", str(run.path), "--plain"]
    words += ["--resume"] if run.holds_run() else []
    words += [word for item in cell.overrides for word in ("--set", item)]
    ended = commands.call(words, directory.log("up"), directory.error)
    if ended.failure:
        return ended.failure
    return "" if directory.state == "trained" else f"it ended before its last step; see {directory.log('up')}"


def _evaluate(matrix: Matrix, cell: Cell, directory: CellDir, commands: Runner, *, baselines: bool) -> str:
    measure = matrix.measure
    part = directory.path / "evaluation.part.json"
    words = ["evaluate", str(directory.run.path), "--split", str(measure.split), "--limit", str(measure.limit)]
    words += ["--samples", str(measure.samples), "--seed", str(measure.seed), "-o", str(part)]
    rollout = cell.recipe.rollout
    words += ["--engine", rollout.engine, "--device", rollout.device]
    words += ["--threads", str(rollout.threads)] if rollout.threads else []
    words += ["--rewards", ",".join(measure.rewards)] if measure.rewards else []
    words += ["--baselines"] if baselines else []
    ended = commands.call(words, directory.log("evaluate"), directory.error)
    if ended.failure:
        return ended.failure
    if not part.exists():
        return f"`tersely evaluate` wrote nothing; see {directory.log('evaluate')}"
    os.replace(part, directory.evaluation)
    return ""
