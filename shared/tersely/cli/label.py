"""`tersely label`: people score summaries in the terminal, blind, a new sample every week."""

from __future__ import annotations

import getpass
import hashlib
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

AXES = {
    "faithfulness": "Does the document say all that the summary says?",
    "coverage": "Does it hold what matters most in the document?",
    "conciseness": "Is every word needed?",
    "clarity": "Is it good to read, without the document?",
}
HIGHEST = 10
HELP = "0 to 10; Enter: can't tell; b: back; s: skip this summary; q: stop (go on later with the same command)"
COLUMNS = 100

Ask = Callable[[str], str]
Say = Callable[[str], None]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("label", help="Score a sample of summaries by hand, to hold a judge against.")(label)


def label(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Lines {id, document, completion}.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="LABELS.jsonl", help="Labels are added here.")],
    sample: Annotated[int, typer.Option("--sample", min=1, help="Summaries per rotation.")] = 20,
    rater: Annotated[str | None, typer.Option("--rater", metavar="NAME", help="Who labels; default: the user.")] = None,
    rotation: Annotated[
        str | None, typer.Option("--rotation", metavar="WORD", help="Draws the sample; default: this ISO week.")
    ] = None,
) -> None:
    """Asks summary by summary and keeps every answer at once."""
    from tersely.telemetry.jsonl import JsonLines

    who = rater or getpass.getuser()
    turn = rotation or this_week(datetime.now(UTC).date())
    done = labelled_by(output, who)
    open_rows = [row for row in draw(read_rows(file), turn, sample) if row["id"] not in done]
    if not open_rows:
        typer.echo(f"All {sample} of {turn} are labelled by {who}; the next sample comes with the next week.")
        return
    typer.echo(f"{turn}, {who}: {len(open_rows)} to go. {HELP}")

    def ask(question: str) -> str:
        return str(typer.prompt(question, default="", show_default=False))

    with JsonLines(output) as lines:
        for number, row in enumerate(open_rows, 1):
            typer.echo(f"\n--- {number} of {len(open_rows)} " + "-" * 40)
            scores = ask_about(row, ask, typer.echo)
            if scores is None:
                typer.echo("Stopped; what was labelled is kept.")
                return
            if scores:
                lines.append(label_line(row, scores, who, turn))
    typer.echo(f"\nDone. Compare with a judge: tersely judge calibrate {output}")


def ask_about(row: Mapping[str, str], ask: Ask, say: Say) -> dict[str, int | None] | None:
    """Scores of one summary.

    Returns:
        Axis -> 0 to 10, or None where the rater can't tell; empty when skipped; None when the rater wants to stop.
    """
    for title in ("document", "completion"):
        say(f"\n{title.upper()}")
        for paragraph in row[title].splitlines() or [""]:
            say(textwrap.fill(printable(paragraph), COLUMNS))
    say("")
    scores: dict[str, int | None] = {}
    names = list(AXES)
    while len(scores) < len(names):
        axis = names[len(scores)]
        answer = ask(f"{axis}: {AXES[axis]}").strip().lower()
        if answer == "q":
            return None
        if answer == "s":
            return {}
        if answer == "b":
            if scores:
                scores.popitem()
        elif answer == "":
            scores[axis] = None
        elif answer.isascii() and answer.isdecimal() and int(answer) <= HIGHEST:
            scores[axis] = int(answer)
        else:
            say(HELP)
    return scores


def printable(text: str) -> str:
    """The text without characters that would move the cursor, hide or turn round what a rater sees."""
    return "".join(character if character.isprintable() else " " for character in text)


def label_line(row: Mapping[str, str], scores: Mapping[str, int | None], rater: str, rotation: str) -> dict[str, Any]:
    """A line of the labels' file, with the texts, so that they can be judged from it."""
    return {
        "id": row["id"],
        "rater": rater,
        "rotation": rotation,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "labels": dict(scores),
        "document": row["document"],
        "completion": row["completion"],
    }


def this_week(day: date) -> str:
    """The ISO week, like 2026-W48: a new sample each Monday."""
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02d}"


def draw(rows: Sequence[Mapping[str, str]], rotation: str, count: int) -> list[Mapping[str, str]]:
    """The sample of a rotation: the rows whose hash with its name is lowest, in the order of the hash.

    The same for every rater, whatever the order of the file, and independent from one rotation to the next.
    """
    return sorted(rows, key=lambda row: hashlib.sha256(f"{rotation}\0{row['id']}".encode()).digest())[:count]


def labelled_by(path: Path, rater: str) -> set[str]:
    """Ids that a rater has labelled, in whatever rotation; a line torn by a crash counts as none."""
    from tersely.telemetry.jsonl import read_json_lines

    return {str(line.get("id")) for line in read_json_lines(path) if line.get("rater") == rater}


def _is_utf8(text: str) -> bool:
    """Whether it can be shown and written: JSON may hold half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_rows(path: Path) -> list[Mapping[str, str]]:
    """Rows with an id, a document and a completion; what else a line holds is not shown to the rater.

    Raises:
        DataMissing: The file can't be read.
        DataRecord: A line lacks one of them, or repeats an id.
        DataEmpty: There is no line.
    """
    from tersely.errors import DataEmpty, DataMissing, DataRecord

    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataMissing(f"{path} can't be read: {error}.", "Check its name; it must be UTF-8.") from None
    rows: dict[str, Mapping[str, str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            row = {"id": str(fields["id"]), "document": fields["document"], "completion": fields["completion"]}
        except (ValueError, RecursionError, KeyError, TypeError):
            row = {}
        if not row or not all(isinstance(value, str) and _is_utf8(value) for value in row.values()):
            raise DataRecord(
                f"{path}:{number}: the line is not an object with id, document and completion as text.", "Mend it."
            )
        if row["id"] in rows:
            raise DataRecord(f"{path}:{number}: the id {row['id']!r} is used twice.", "Make ids unique.")
        rows[row["id"]] = row
    if not rows:
        raise DataEmpty(f"{path} has no line.", "Give a file of summaries with their documents.")
    return list(rows.values())
