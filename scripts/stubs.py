"""Makes the stubs in shared/tersely/v1 from proto/, or with --check tells whether the committed ones are stale."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUBS = Path("tersely/v1")
GENERATOR = "1.76.0"  # its stubs import on protobuf 6.33 and on 7; those of newer ones don't on 6.33


def generate(root: Path, into: Path) -> None:
    """Runs protoc with the Python, mypy and gRPC plugins over every proto file."""
    installed = importlib.metadata.version("grpcio-tools")
    if installed != GENERATOR:
        raise SystemExit(
            f"stubs are made with grpcio-tools {GENERATOR}, but {installed} is installed: run `make setup`"
        )
    bin_dir = Path(sys.executable).parent
    plugins = [f"--plugin={name}={bin_dir / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    outputs = [
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_out=quiet:{into}",
        f"--mypy_grpc_out=quiet:{into}",
    ]
    protos = sorted(str(path.relative_to(root / "proto")) for path in (root / "proto" / STUBS).glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(root / "proto"), *plugins, *outputs, *protos]
    subprocess.run(command, check=True, cwd=root / "proto")
    (into / STUBS / "py.typed").touch()


def stale(root: Path) -> list[str]:
    """Faults: stubs that differ from what proto/ gives, are missing, or have no proto."""
    with tempfile.TemporaryDirectory() as folder:
        generate(root, Path(folder))
        fresh = _contents(Path(folder) / STUBS)
    committed = _contents(root / "shared" / STUBS)
    faults = []
    for name in sorted(fresh.keys() | committed.keys()):
        if fresh.get(name) != committed.get(name):
            fault = "has no proto" if name not in fresh else "is missing" if name not in committed else "is stale"
            faults.append(f"shared/{STUBS}/{name} {fault}")
    return faults


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def main() -> int:
    """Checks or writes; exit status 1 means stale."""
    if "--check" in sys.argv[1:]:
        faults = stale(ROOT)
        if faults:
            print("\n".join([*faults, "run: make proto"]), file=sys.stderr)
        return 1 if faults else 0
    target = ROOT / "shared" / STUBS
    shutil.rmtree(target, ignore_errors=True)
    generate(ROOT, ROOT / "shared")
    return 0


if __name__ == "__main__":
    sys.exit(main())
