"""A cell's directory: what is in it, and how far it got."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tersely.ablation.plan import Cell
from tersely.errors import RunDirNotEmpty
from tersely.supervise.files import write_json
from tersely.supervise.run_dir import RunDir, read_json

CellState = Literal["new", "begun", "trained", "measured"]


@dataclass(frozen=True, slots=True)
class CellDir:
    """Paths of a cell in the ablation's directory."""

    path: Path

    @property
    def run(self) -> RunDir:
        """The run itself, a run directory like any other."""
        return RunDir(self.path / "run")

    @property
    def evaluation(self) -> Path:
        """What its policy was measured to do."""
        return self.path / "evaluation.json"

    @property
    def error(self) -> Path:
        """The error that ended its last process, if one did."""
        return self.path / "error.json"

    def log(self, name: str) -> Path:
        """Output of its processes: `up` or `evaluate`."""
        return self.path / f"{name}.log"

    def prepare(self, cell: Cell, measure: Mapping[str, object]) -> None:
        """Makes the directory, or makes sure that it is this cell's; drops figures that were measured otherwise.

        Args:
            cell: What is to be in it.
            measure: How it is measured.

        Raises:
            RunDirNotEmpty: It holds a run with other settings.
        """
        found = self.check(cell)
        if found is not None and found.get("recipe_sha256") != cell.recipe_sha256:
            shutil.rmtree(self.path)
        elif found is not None and found.get("measure") != measure:
            self.evaluation.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(
            self.path / "cell.json",
            {
                "config": cell.arm.config,
                "schedule": cell.arm.schedule,
                "seed": cell.seed,
                "overrides": cell.overrides,
                "recipe_sha256": cell.recipe_sha256,
                "measure": measure,
            },
        )

    def check(self, cell: Cell) -> dict[str, object] | None:
        """What the directory says that it holds; None if it says nothing.

        Raises:
            RunDirNotEmpty: It holds a run with other settings than the cell's.
        """
        found = read_json(self.path / "cell.json")
        if found is not None and found.get("recipe_sha256") != cell.recipe_sha256 and self.state != "new":
            raise RunDirNotEmpty(
                f"{self.path} holds a run with other settings than {cell.name} has now.",
                "Give another --dir, or remove that folder to train it again.",
            )
        return found

    @property
    def state(self) -> CellState:
        """How far it got; what was half done is gone on with, or done again."""
        if self.evaluation.exists():
            return "measured"
        if self.run.report.exists() and (read_json(self.run.status) or {}).get("state") == "finished":
            return "trained"
        return "begun" if self.run.holds_run() else "new"
