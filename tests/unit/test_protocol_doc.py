"""docs/protocol.md names every event that is written and every key of report.json."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "protocol.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", DOC, re.M | re.S)
    assert found is not None
    return found[1]


def first_cells(text: str) -> set[str]:
    """Names in backquotes in the first column of the tables."""
    rows = (line.split("|")[1] for line in text.splitlines() if line.startswith("| "))
    return {name for cell in rows for name in re.findall(r"`\.?([a-z0-9_.]+)`", cell)}


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an expression can be, as far as it says."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)


def written_events() -> set[str]:
    """First arguments of calls like `events.write("kind", field=...)`."""
    kinds = set()
    for root in ("services", "shared"):
        for file in (ROOT / root).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                    of = ast.unparse(node.func.value)
                    if node.func.attr == "write" and re.search(r"\b_?events$", of):
                        kinds |= set(texts(node.args[0]))
    return kinds


def test_every_event_is_in_the_table() -> None:
    written = written_events()
    assert {"step_finished", "rolled_back", "run_resumed", "service_died"} <= written
    assert written <= first_cells(section("events.jsonl"))


def test_every_key_of_the_report_is_in_the_table() -> None:
    tree = ast.parse((ROOT / "services" / "tersely" / "trainer" / "report.py").read_text())
    returned = [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict)
    ]
    largest = max(returned, key=lambda found: len(found.keys))
    keys = {text for key in largest.keys if key is not None for text in texts(key)}
    assert {"run_id", "held_out", "groups"} <= keys
    known = {name.partition(".")[0] for name in first_cells(section("report.json"))}
    assert keys <= known
