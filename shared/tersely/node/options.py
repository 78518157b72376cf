"""What a service is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Command line of one service; each reads what concerns it.

    Attributes:
        trainer: Address host:port of the trainer to join (rollout, scorer; judge if it takes part in a run).
        recipe: Recipe file (trainer; scorer and judge without a run).
        overrides: Items of `--set`.
        run_dir: Run directory (trainer).
        resume: Go on with the run that the directory holds (trainer).
        redis_url: Redis for the run (trainer; overrides the recipe's queue.url), or whose jobs to take (scorer, judge).
        engine: Engine name (rollout); overrides the recipe's.
        threads: CPU threads; overrides the recipe's.
        log_json: Log as JSON lines instead of text.
    """

    trainer: str | None = None
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()
    run_dir: Path | None = None
    resume: bool = False
    redis_url: str | None = None
    engine: str | None = None
    threads: int | None = None
    log_json: bool = False
