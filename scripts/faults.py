"""Everything that breaks things on purpose, and one file that says what came of it.

Usage: python scripts/faults.py [--seed N]      (`make faults`; about twenty minutes on two cores)

First the tests in tests/faults, also those that `make test` leaves out, and beside them the table of refused gRPC calls
and made-up input (scripts/fuzz.py); then, undisturbed, a short soak (scripts/soak.py) and stalls (scripts/stalls.py).
Logs and run directories stay in build/faults/, figures in build/faults.json. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
FOLDER = BUILD / "faults"
SOAK_SECONDS = 60
ENVIRON = {"TERSELY_FAULTS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def run(name: str, *command: str) -> bool:
    """Runs a Python program of the repository, its output in build/faults/NAME.log; whether it ended well."""
    typer.echo(f"{name}: begins", err=True)
    with (FOLDER / f"{name}.log").open("wb") as log:
        code = subprocess.run(
            [sys.executable, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **ENVIRON},
            check=False,
        ).returncode
    typer.echo(f"{name}: {'passed' if code == 0 else f'failed ({code}), see {FOLDER / name}.log'}", err=True)
    return code == 0


def pytest(name: str, *words: str) -> bool:
    """Runs tests; their run directories stay in build/faults/NAME, their results in NAME.xml."""
    keep = (f"--basetemp={FOLDER / name}", "-o", "tmp_path_retention_policy=all", f"--junitxml={FOLDER / name}.xml")
    return run(name, "-m", "pytest", *keep, *words)


def scenarios(path: Path) -> list[dict[str, Any]]:
    """Name and outcome of each test in a file of pytest's results; skipped ones are left out."""
    cases = ElementTree.parse(path).iter("testcase")
    return [
        {
            "name": f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}",
            "passed": case.find("failure") is None and case.find("error") is None,
            "seconds": round(float(case.get("time", 0)), 1),
        }
        for case in cases
        if case.find("skipped") is None
    ]


def found(name: str) -> Any:
    """The figures a part left in build/ or build/faults/; null if it left none."""
    for path in (FOLDER / f"{name}.json", BUILD / f"{name}.json"):
        if path.exists():
            return json.loads(path.read_text())
    return None


def chosen(figures: Any, keys: Sequence[str]) -> Any:
    """The keys of a part's figures that the summary shows."""
    return None if figures is None else {key: figures.get(key) for key in keys}


def main(seed: Annotated[int, typer.Option(help="Of the kills and of the made-up input.")] = 0) -> None:
    """Runs all parts and writes the summary."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for name in ("auth", "fuzz"):
        (BUILD / f"{name}.json").unlink(missing_ok=True)
    passed: dict[str, bool] = {}

    def beside() -> None:
        passed["auth"] = pytest("auth-tests", "tests/security/test_grpc_auth_table.py")
        passed["fuzz"] = run("fuzz", "scripts/fuzz.py", "--seed", str(seed))

    lane = threading.Thread(target=beside)
    lane.start()
    passed["scenarios"] = pytest("scenarios", "tests/faults")
    lane.join()
    soak = ("--seed", str(seed), "--seconds", str(SOAK_SECONDS), "--out", str(FOLDER / "soak.json"))
    passed["soak"] = run("soak", "scripts/soak.py", *soak)
    passed["stalls"] = run("stalls", "scripts/stalls.py", str(FOLDER / "stalls.json"))
    summary = {"seed": seed, "passed": passed, **figures()}
    (BUILD / "faults.json").write_text(json.dumps(summary, indent=1) + "\n")
    typer.echo(json.dumps(summary, indent=1))
    if not all(passed.values()):
        raise typer.Exit(1)


def figures() -> dict[str, Any]:
    """What the parts have left, under the names of the summary."""
    results = FOLDER / "scenarios.xml"
    return {
        "soak": found("soak"),
        "scenarios": scenarios(results) if results.exists() else [],
        "stalls": found("stalls"),
        "auth": chosen(found("auth"), ("calls", "refused")),
        "fuzz": chosen(found("fuzz"), ("inputs", "crashes")),
    }


if __name__ == "__main__":
    typer.run(main)
