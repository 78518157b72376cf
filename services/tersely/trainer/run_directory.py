"""The folder of a run: where things lie, who may write, and how often a trainer has started here."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from tersely.config import Recipe
from tersely.errors import CheckpointInvalid, RunDirBusy, RunDirMissing, RunDirNotEmpty, TrainerSuperseded
from tersely.telemetry.atomic import write_atomic
from tersely.telemetry.disk import disk_errors

# Sections that fix the course of training, besides stages; where it listens or how many workers it has does not.
_COURSE = ("run", "model", "data", "length", "sampling", "learner", "rewards")
_FREE_RUN_KEYS = ("steps", "checkpoint_every", "keep_checkpoints")
# What fits the machine at hand; it changes how sums are rounded, which a replay announces, not what is summed.
_FREE_LEARNER_KEYS = (
    "threads",
    "device",
    "parallel",
    "recompute",
    "micro_batch_tokens",
    "logit_chunk_tokens",
    "shared_prompt",
)
_ONCE_FREE_LEARNER_KEYS = ("threads",)


class RunDirectory:
    """Paths of a run, held under a lock while a trainer works in it.

    Args:
        path: The folder; created when it is not there.
        resume: Go on with the run in it; else it must not hold one.

    Raises:
        RunDirBusy, RunDirMissing, RunDirNotEmpty.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path.resolve()
        if resume and not self.log_file.exists():
            raise RunDirMissing(
                f"There is no run to resume in {self.path}.", "Leave out --resume to begin a new run there."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".trainer.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunDirBusy(
                f"Another trainer is working in {self.path}.", "Stop it first, or choose another --run-dir."
            ) from None
        if not resume and self.log_file.exists():
            self._lock.release()
            raise RunDirNotEmpty(
                f"{self.path} holds a run already.", "Add --resume to go on with it, or choose another --run-dir."
            )
        self.incarnation = self._read_incarnation() + 1
        write_atomic(self.path / "incarnation", str(self.incarnation))

    @property
    def log_file(self) -> Path:
        """The write-ahead log."""
        return self.path / "log" / "run.wal"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def file(self, name: str) -> Path:
        """A file at the top of the run directory."""
        return self.path / name

    def write_json(self, name: str, value: object) -> None:
        """Replaces a JSON file of the run in one step.

        Raises:
            TrainerSuperseded: A newer trainer writes them now.
            DiskFull: The old file is untouched.
        """
        self.check_incarnation()
        with disk_errors(f"{name} of the run"):
            write_atomic(self.file(name), json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """A JSON file of the run, or None when it is not there."""
        path = self.file(name)
        return json.loads(path.read_text()) if path.exists() else None

    def announce(self, *, run_id: str, trainer_address: str, redis_url: str, join_address: str | None = None) -> None:
        """Writes run.json: how others find this trainer."""
        facts = {
            "run_id": run_id,
            "trainer_address": trainer_address,
            "redis_url": redis_url,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "incarnation": self.incarnation,
            "started": time.time(),
        }
        if join_address is not None:
            facts["join_address"] = join_address
        self.write_json("run.json", facts)

    def check_incarnation(self) -> None:
        """Stops an older trainer that wakes up after a newer one took over.

        Raises:
            TrainerSuperseded.
        """
        newest = self._read_incarnation()
        if newest != self.incarnation:
            raise TrainerSuperseded(
                f"Trainer incarnation {newest} has taken over {self.path}; this one is {self.incarnation}.",
                "Nothing to do: the newer trainer goes on with the run.",
            )

    def abandon_if_unused(self) -> None:
        """Takes back what was written before the run's log was begun, so that a failed start leaves nothing behind."""
        if self.log_file.exists():
            return
        for name in ("incarnation", "run.json", "recipe.json", "status.json", "events.jsonl", "samples.jsonl"):
            self.file(name).unlink(missing_ok=True)
        self._lock.release()
        self.file(".trainer.lock").unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def release(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _read_incarnation(self) -> int:
        path = self.path / "incarnation"
        return int(path.read_text()) if path.exists() else 0


def course_sha256(recipe: Recipe) -> str:
    """Hash of the settings that fix the course of training, hex."""
    return _sha256(_course(recipe.model_dump(mode="json"), steps=_steps_matter(recipe)))


def refuse_other_course(logged_sha256: str, recipe: Recipe, earlier: Mapping[str, Any] | None = None) -> None:
    """Refuses to go on with settings that would have led the run elsewhere.

    Args:
        logged_sha256: Hash of the settings it was begun with, or last gone on with.
        recipe: The settings now.
        earlier: recipe.json of the run: names what is different. It also lets a run go on that was begun before some
            settings existed; those have their defaults then, and the hash shows that the file is the right one.

    Raises:
        CheckpointInvalid.
    """
    if logged_sha256 == course_sha256(recipe):
        return
    differing: list[str] = []
    if earlier is not None and logged_sha256 in _hashes(earlier):
        try:
            before = Recipe.model_validate(earlier)
        except ValidationError:
            before = None
        if before is not None:
            matter = _steps_matter(before) or _steps_matter(recipe)
            old, new = (_course(each.model_dump(mode="json"), steps=matter) for each in (before, recipe))
            differing = sorted(_differing(old, new))
            if not differing:
                return
    what = f" ({', '.join(differing)})" if differing else ""
    steps = " With stages, or a learning rate that falls to the end, run.steps is one of them." * (
        "run.steps" in differing
    )
    raise CheckpointInvalid(
        "The recipe differs from the one this run was begun with, in settings that change what is learned"
        f"{what}.{steps}",
        "Resume with the recipe in the run directory (recipe.json shows it), or begin a new run.",
    )


def _steps_matter(recipe: Recipe) -> bool:
    """Whether a run of another length would have trained its first steps otherwise."""
    return recipe.learner.schedule != "constant" or bool(recipe.stages)


def _hashes(tree: Mapping[str, Any]) -> set[str]:
    """Hashes that this or an earlier version gave a recipe."""
    return {
        _sha256(_course(tree, steps=steps, free=free))
        for steps in (True, False)
        for free in (_FREE_LEARNER_KEYS, _ONCE_FREE_LEARNER_KEYS)
    }


def _course(tree: Mapping[str, Any], *, steps: bool, free: tuple[str, ...] = _FREE_LEARNER_KEYS) -> dict[str, Any]:
    """The part of a recipe, as JSON values, that fixes the course."""
    course = {name: dict(tree[name]) for name in _COURSE if name in tree}
    if tree.get("stages"):
        course["stages"] = {str(number): stage for number, stage in enumerate(tree["stages"], 1)}
    for key in _FREE_RUN_KEYS:
        course.get("run", {}).pop(key, None)
    learner = course.get("learner", {})
    for key in free:
        learner.pop(key, None)
    if "parallel" in learner:
        learner["parallel"] = "ddp"
    if steps:
        course.setdefault("run", {})["steps"] = tree["run"]["steps"]
    return course


def _differing(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {*old, *new}:
            yield from _differing(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path


def _sha256(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
