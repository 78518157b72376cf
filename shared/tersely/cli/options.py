"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, e.g. run.steps=10. Repeatable."),
]
RunDirOption = Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="Directory of the run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
InsecureLanOption = Annotated[
    bool,
    typer.Option("--insecure-lan", help="Plaintext beyond loopback: on a network where you trust every machine."),
]
