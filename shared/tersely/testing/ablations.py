"""Stands in for the commands that an ablation runs: trains and measures nothing, but leaves the same files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tersely.ablation.plan import Matrix, load_matrix
from tersely.ablation.processes import Ended, Stopped
from tersely.testing.evaluations import drawn_prompts, evaluation

SMALL = """
[ablation]
recipe = "RECIPE"
steps = 4
seeds = [0, 1]
[configs.lone]
[configs.r]
rouge_l = 1.0
[measure]
limit = 20
tested = ["abs_length_error", "rouge_l", "composite_at_equal_length"]
"""


def small_matrix(folder: Path, recipe: Path, text: str = SMALL) -> Matrix:
    """Three arms (lone, r joint, r staged) on two seeds."""
    path = folder / "small.toml"
    path.write_text(text.replace("RECIPE", str(recipe)))
    return load_matrix(path)


class FakeCommands:
    """Notes every call; `r` arms come out better in ROUGE-L than the length alone.

    Args:
        fail: Whether a call of these words fails.
        stop_after: Calls after which a signal comes, in the middle of the next.
    """

    def __init__(self, fail: Callable[[Sequence[str]], bool] = lambda words: False, stop_after: int = 10**9) -> None:
        self.calls: list[list[str]] = []
        self._fail = fail
        self._stop_after = stop_after

    def check(self) -> None:
        """Raises once the signal came."""
        if len(self.calls) > self._stop_after:
            raise Stopped(15)

    def call(self, words: list[str], log: Path, error_file: Path) -> Ended:
        """As `Commands.call`."""
        self.calls.append(words)
        if self._fail(words):
            return Ended("data_missing: no such file")
        stops = len(self.calls) > self._stop_after
        if words[0] == "up":
            _train(Path(words[words.index("--run-dir") + 1]), done=not stops)
        if stops:
            raise Stopped(15)
        if words[0] == "evaluate":
            _measure(words)
        return Ended()

    def cells(self, command: str) -> list[str]:
        """Names of the cells that a command was called for."""
        places = [Path(words[1] if command == "evaluate" else words[3]) for words in self.calls if words[0] == command]
        return [place.parent.name for place in places]


def _train(run_dir: Path, *, done: bool) -> None:
    (run_dir / "log").mkdir(parents=True, exist_ok=True)
    (run_dir / "log" / "0.wal").write_text("begun")
    if done:
        report = {"steps": 4, "groups": {"trained": 16}, "seconds": 2.5, "final_weights_sha256": "ab" * 32}
        (run_dir / "report.json").write_text(json.dumps(report))
        (run_dir / "status.json").write_text(json.dumps({"state": "finished"}))


def _measure(words: Sequence[str]) -> None:
    name = Path(words[1]).parent.name
    better = 0.0 if name.startswith("lone") else 0.5
    found: dict[str, Any] = evaluation(drawn_prompts(len(name) + int(name[-1]), count=20, shift=better))
    if "--baselines" in words:
        found["baselines"] = {"lead": found["greedy"]}
    Path(words[words.index("-o") + 1]).write_text(json.dumps(found))
