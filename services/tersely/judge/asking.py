"""Asks a judge about rows by `tersely judge-file`, a process of its own that finds the judge's environment itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersely.errors import ServiceFailed
from tersely.judge.labels import Judgement, judgement_from, read_lines
from tersely.supervise.failures import ERROR_FILE_ENV, read_failure


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who judges, as `tersely judge-file` is told.

    Attributes:
        base_url: URL of an OpenAI-compatible endpoint.
        model: Name of the model there.
        api_key_env: Environment variable with the key; none: as judge-file does by itself.
        rounds: Judgements per text and axis; none: judge-file's own number.
        budget_tokens: Tokens after which it stops; none: no limit.
        cache: Folder of kept answers; none: a new one, so that the endpoint is asked about everything.
        words: Further words for its command line.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    rounds: int | None = None
    budget_tokens: int | None = None
    cache: Path | None = None
    words: tuple[str, ...] = ()

    def options(self, cache: Path) -> list[str]:
        """Its part of the command line."""
        words = ["--base-url", self.base_url, "--model", self.model, "--cache", str(self.cache or cache)]
        for name, value in (
            ("--api-key-env", self.api_key_env),
            ("--rounds", self.rounds),
            ("--budget-tokens", self.budget_tokens),
        ):
            words += [] if value is None else [name, str(value)]
        return [*words, *self.words]


def judge_rows(rows: Sequence[Mapping[str, Any]], endpoint: Endpoint) -> dict[str, Judgement]:
    """Judges rows {"id", "document", "completion"}; what the process says goes to this one's stderr.

    Returns:
        Judgements by id; axes that the judge abstained on are missing in them.

    Raises:
        TerselyError: The error that ended the process.
        ServiceFailed: It ended without saying why.
    """
    with tempfile.TemporaryDirectory(prefix="tersely-judge-") as name:
        folder = Path(name)
        source, target, failure = folder / "rows.jsonl", folder / "judged.jsonl", folder / "error.json"
        source.write_text("".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows))
        command = [sys.executable, "-m", "tersely.cli", "judge-file", str(source), "-o", str(target)]
        done = subprocess.run(
            [*command, *endpoint.options(folder / "cache")],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env={**os.environ, ERROR_FILE_ENV: str(failure)},
            check=False,
        )
        if done.returncode:
            raise read_failure(failure, done.returncode) or ServiceFailed(
                f"tersely judge-file ended with code {done.returncode}.", "What it said stands above."
            )
        judged = [judgement_from(fields, where) for where, fields in read_lines(target)]
    return {judgement.id: judgement for judgement in judged}
