"""Makes the judge's environment, or brings it up to date: `judge_env.py DIR`.

DeepEval wants an older click than transformers' hub client does, so that the judge gets an environment of its own. It
holds tersely as this clone has it (editable), DeepEval, RQ and what its tests need; no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints-judge.txt"
TESTS = ("pytest", "pytest-timeout")


def stamp() -> list[str]:
    """Hashes of what the environment is made from: pins, Python and this script; and tersely's own needs and place."""
    pins = [CONSTRAINTS.read_bytes(), Path(__file__).read_bytes(), sys.version.encode()]
    own = [(ROOT / "pyproject.toml").read_bytes(), str(ROOT).encode()]
    return [hashlib.sha256(b"\0".join(parts)).hexdigest() for parts in (pins, own)]


def main() -> None:
    """Makes what is missing or was made from something else; anew only where the pins or the Python changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the environment is, or shall be")
    folder = parser.parse_args().folder
    mark = folder / ".tersely-stamp"
    made, wanted = mark.read_text(encoding="utf-8").split() if mark.is_file() else [], stamp()
    if made == wanted:
        return
    if made[:1] != wanted[:1]:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
    pip = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    subprocess.run([*pip, "-c", str(CONSTRAINTS), "-e", f"{ROOT}[judge]", *TESTS], check=True)
    mark.write_text("\n".join(wanted), encoding="utf-8")


if __name__ == "__main__":
    main()
