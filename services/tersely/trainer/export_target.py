"""Where an export goes: what it may replace there, and what it must leave alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Set
from pathlib import Path

from tersely.errors import ConfigValue
from tersely.models.provenance import PROVENANCE_FILE, read_provenance

_RUN_MARKS = ("run.json", "log/run.wal")
_SHOWN = 5


def check_target(target: Path, model_folder: Path, own: Set[str]) -> None:
    """Refuses to export where something would be lost.

    Args:
        target: Folder to make, absolute.
        model_folder: The base model.
        own: Names of files, relative to the folder, that the export is going to write.

    Raises:
        ConfigValue: The folder belongs to a run, is the base model's, or holds files that no export wrote.
    """
    for folder in (target, *target.parents):
        if any((folder / mark).is_file() for mark in _RUN_MARKS):
            raise ConfigValue(
                f"--to {target} is inside the run directory {folder}, whose files are the run's own.",
                "Name a folder outside of it.",
            )
    if target == model_folder.resolve():
        raise ConfigValue(
            f"--to {target} is the model that the run began with; without it the run can't be replayed or continued.",
            "Name another folder.",
        )
    others = foreign_files(target, own)
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise ConfigValue(
            f"--to {target} holds files that no export wrote: {', '.join(others[:_SHOWN])}{more}.",
            "Name another folder, or move them away first; an older export alone is replaced.",
        )


def foreign_files(target: Path, own: Set[str]) -> list[str]:
    """Names, relative to a folder, of what is in it and was not written by an export, sorted.

    Args:
        target: The folder; it need not exist.
        own: Names that count as an export's, beside those that the export there says it wrote.
    """
    if not target.is_dir():
        return []
    return sorted(set(_names(target)) - own - _written(target))


def put_in_place(partial: Path, target: Path, own: Set[str]) -> None:
    """Makes a finished folder the target, in place of an older export; other files that are there stay.

    Args:
        partial: The new export, in the same file system.
        target: Where it goes.
        own: Names of the files in it.
    """
    if not foreign_files(target, own):
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return
    # The name by which others know an export goes first and comes last: in between it is none.
    (target / PROVENANCE_FILE).unlink(missing_ok=True)
    for name in _written(target) - own:
        (target / name).unlink(missing_ok=True)
    for name in sorted(own, key=lambda name: name == PROVENANCE_FILE):
        (target / name).parent.mkdir(exist_ok=True)
        (partial / name).replace(target / name)
    shutil.rmtree(partial)


def files_in(folder: Path) -> set[str]:
    """Names of all files in a folder, relative to it."""
    return set(_names(folder))


def _written(target: Path) -> set[str]:
    files = (read_provenance(target) or {}).get("files")
    listed = {name for name in files if isinstance(name, str)} if isinstance(files, list) else set()
    return {name for name in listed if not Path(name).is_absolute() and ".." not in Path(name).parts}


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if not path.is_dir() or path.is_symlink() or not any(path.iterdir()):
            yield path.relative_to(folder).as_posix()
