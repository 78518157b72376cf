"""`tersely replay`: trains again from a run's log alone, and holds each version against the logged one.

There are no workers, no Redis and no network, and nothing in the run directory is changed or locked: a trainer may be
at work on it, or the directory may be a copy. A run that is unfinished is replayed to the end of its log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from tersely.config import Recipe
from tersely.config.learner import LearnerSection
from tersely.errors import CheckpointInvalid, ConfigValue, RunDirMissing
from tersely.models.device import available_cores, set_threads
from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.trainer.checkpoint import list_checkpoints
from tersely.trainer.environment import differences, environment_facts, fitted
from tersely.trainer.history import History, fold
from tersely.trainer.learner import Learner
from tersely.trainer.retrace import choose_start, retrace
from tersely.trainer.wal import read_records
from tersely.weights.snapshot import Snapshot

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """A place that a replay came to: its beginning, a step trained, or a roll-back.

    Attributes:
        step: Steps trained.
        of: The last one.
        to_step: Step that was gone back to; None unless it is a roll-back.
        same: Whether the weights are the logged ones; None where no version is logged.
        seconds: How long it took.
    """

    step: int
    of: int
    to_step: int | None
    same: bool | None
    seconds: float


def run_replay(
    run_dir: Path,
    *,
    from_step: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Trains again from the log of a run.

    Args:
        run_dir: Run directory, or a copy of one.
        from_step: Begin with the newest checkpoint at or before this step; None: with the initial weights.
        threads: CPU threads; None: as many as the log says for each step.
        device: Where to train; None: as the recipe says.
        on_progress: Told of each place it comes to.

    Returns:
        JSON values: final_weights_sha256; logged_weights_sha256 (None where the log ends before its version);
        from_step (steps trained at the beginning), to_step, steps (trained here), rollbacks (done here);
        differing_step (first with another hash than the logged one, or None), environment_differences (texts); seconds.

    Raises:
        RunDirMissing, LogCorrupt, CheckpointInvalid, ConfigValue: The run can't be replayed.
        ModelError: Its model is not on this machine.
    """
    began = time.monotonic()
    if from_step is not None and from_step < 0:
        raise ConfigValue(f"--from-step is {from_step}, but steps count from 0.", "Leave it out to begin at the start.")
    recipe, history = _read(run_dir)
    if from_step is not None and from_step > history.last_step:
        raise ConfigValue(
            f"--from-step is {from_step}, but the log ends with step {history.last_step}.",
            f"Give a step up to {history.last_step}, or leave it out to begin at the start.",
        )
    if device is not None:
        recipe = recipe.model_copy(update={"learner": recipe.learner.model_copy(update={"device": device})})
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    start = choose_start(history, checkpoints, at_most=from_step or 0)
    steps = range(start.step + 1, history.last_step + 1)

    def threads_of(step: int) -> int:
        logged = history.environment_of(step).get("threads", "")
        return threads or (int(logged) if logged.isdecimal() else available_cores())

    def settings_of(step: int) -> LearnerSection:
        return fitted(recipe.learner, history.environment_of(step))

    learner = _learner(recipe, settings_of(start.step + 1), threads_of(start.step + 1))

    def before_step(step: int) -> None:
        set_threads(threads_of(step))
        learner.fit(settings_of(step))

    reached, logged_sha256, differing, rollbacks = "", None, None, 0
    try:
        for done in retrace(history, learner, start, checkpoints, before_step):
            logged = start.label if done.is_start else history.versions.get(done.step)
            if done.rollback is not None:
                logged, rollbacks = done.rollback.label, rollbacks + 1
            reached = _weights_sha256(learner)
            logged_sha256 = None if logged is None else logged.weights_sha256
            same = None if logged_sha256 is None else reached == logged_sha256
            if same is False and done.is_start:
                where = "the initial model" if start.checkpoint is None else str(start.checkpoint.path)
                raise CheckpointInvalid(
                    f"The weights of {where} are not those that the log begins with at step {start.step}.",
                    "Restore the model folder or the checkpoint, or begin elsewhere with --from-step.",
                )
            if same is False and differing is None:
                differing = done.step
            to_step = None if done.rollback is None else done.rollback.to_step
            on_progress(Progress(done.step, history.last_step, to_step, same, done.seconds))
    except FileNotFoundError as error:
        raise CheckpointInvalid(
            f"{error.filename} was removed while it was needed: a trainer is at work on this run.", "Start again."
        ) from None
    found = dict.fromkeys(
        text
        for step in steps
        for text in differences(
            history.environment_of(step), environment_facts(learner.device, threads_of(step), settings_of(step))
        )
    )
    return {
        "final_weights_sha256": reached,
        "logged_weights_sha256": logged_sha256,
        "from_step": start.step,
        "to_step": history.last_step,
        "steps": len(steps),
        "rollbacks": rollbacks,
        "differing_step": differing,
        "environment_differences": list(found),
        "seconds": time.monotonic() - began,
    }


def _read(run_dir: Path) -> tuple[Recipe, History]:
    log_file, recipe_file = run_dir / "log" / "run.wal", run_dir / "recipe.json"
    history = fold(read_records(log_file)) if log_file.exists() else History()
    if history.initial is None or not recipe_file.exists():
        raise RunDirMissing(
            f"There is no run to replay in {run_dir}: it needs log/run.wal and recipe.json.",
            "Name the directory that was given as --run-dir.",
        )
    try:
        return Recipe.model_validate(json.loads(recipe_file.read_text())), history
    except (ValueError, ValidationError) as error:
        raise ConfigValue(
            f"{recipe_file} is not a recipe that this version of tersely can read: {error}",
            "Replay with the version that trained the run; the log's first record names it.",
        ) from None


def _learner(recipe: Recipe, settings: LearnerSection, threads: int) -> Learner:
    folder = locate_model(recipe.model.name, recipe.model.revision)
    return Learner(
        folder,
        settings.model_copy(update={"threads": threads}),
        temperature=recipe.sampling.temperature,
        reward_weights=recipe.reward_weights,
        total_steps=recipe.run.steps,
        max_completion_tokens=recipe.max_completion_tokens,
        stop_token_ids=PolicyTokenizer.from_folder(folder).stop_token_ids,
    )


def _weights_sha256(learner: Learner) -> str:
    snapshot = Snapshot.build(
        0, learner.published(), run_id="", model_files=(), stop_token_ids=(), chunk_bytes=1 << 20, incarnation=0
    )
    return snapshot.label.weights_sha256
