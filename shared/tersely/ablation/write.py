"""The report of an ablation on disk: JSON, Markdown and a page, all of the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tersely.ablation.figures import build_report
from tersely.ablation.markdown import render_markdown
from tersely.ablation.page import render_page
from tersely.ablation.plan import Matrix
from tersely.ablation.run import CellOutcome
from tersely.evaluation.files import dumps
from tersely.telemetry.atomic import write_atomic


def write_reports(matrix: Matrix, outcomes: Sequence[CellOutcome], folder: Path) -> dict[str, Any]:
    """Writes report.json, report.md and report.html into the ablation's directory, and returns the first.

    Raises:
        EvaluationInvalid: An evaluation in a cell's directory is damaged.
    """
    report = build_report(matrix, outcomes)
    write_atomic(folder / "report.json", dumps(report))
    write_atomic(folder / "report.md", render_markdown(report))
    write_atomic(folder / "report.html", render_page(report))
    return report
