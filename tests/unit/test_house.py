"""The rules of the house hold here, and each check sees what it is meant to see."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tersely.testing.modules import load_module

ROOT = Path(__file__).resolve().parents[2]


house = load_module(ROOT / "scripts" / "house.py")
stubs = load_module(ROOT / "scripts" / "stubs.py")


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[str, str], Path]:
    """Makes an otherwise empty checkout with one file."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)

    def write(name: str, text: str) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("check", ["too_long", "namespace_inits", "banned", "broken_links"])
def test_this_checkout_has_no_fault(check: str) -> None:
    assert getattr(house, check)(ROOT) == []


def test_every_part_of_the_namespace_says_that_it_is_typed() -> None:
    portions = [ROOT / "services/tersely", ROOT / "shared/tersely"]
    packages = {file.parent for portion in portions for file in portion.glob("*/*.py")}
    assert len(packages) > 10
    # One more for the modules that lie in the namespace itself, such as tersely.types.
    assert [str(folder) for folder in {*packages, portions[1]} if not (folder / "py.typed").is_file()] == []


def test_stubs_are_what_the_protos_give() -> None:
    assert stubs.stale(ROOT) == []


def test_a_changed_proto_makes_its_stubs_stale(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    shutil.copytree(ROOT / "shared/tersely/v1", tmp_path / "shared/tersely/v1")
    proto = tmp_path / "proto/tersely/v1/common.proto"
    proto.write_text(proto.read_text() + "\nmessage Extra { int32 number = 1; }\n")
    assert "shared/tersely/v1/common_pb2.py is stale" in stubs.stale(tmp_path)


def test_a_file_over_500_lines_is_a_fault(checkout: Callable[[str, str], Path]) -> None:
    assert house.too_long(checkout("a.py", "x = 1\n" * 500)) == []
    assert house.too_long(checkout("b.py", "x = 1\n" * 501)) == ["b.py has 501 lines, more than 500: split it"]


@pytest.mark.parametrize("folder", house.NAMESPACE_FOLDERS)
def test_an_init_in_a_namespace_folder_is_a_fault(checkout: Callable[[str, str], Path], folder: str) -> None:
    assert len(house.namespace_inits(checkout(f"{folder}/__init__.py", ""))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import dumps",
        "w = torch.load(path)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(c, shell=True)",
        "except ValueError: pass",
        "# TODO later",
        "DATA = '/root/data'",
    ],
)
def test_banned_code_is_a_fault(checkout: Callable[[str, str], Path], line: str) -> None:
    assert len(house.banned(checkout("a.py", f"x = 1\n{line}\n"))) == 1


def test_words_about_banned_code_are_allowed_in_docs(checkout: Callable[[str, str], Path]) -> None:
    assert house.banned(checkout("SECURITY.md", "No pickle, no torch.load(path).\n")) == []


def test_links_to_missing_files_and_headings_are_faults(checkout: Callable[[str, str], Path]) -> None:
    root = checkout("docs/a.md", "# One two\n[ok](#one-two) [web](https://example.org) [no](b.md) [nor](a.md#three)\n")
    faults = house.broken_links(root)
    assert [fault.split(",")[0] for fault in faults] == ["docs/a.md links to b.md", "docs/a.md links to a.md#three"]


def test_a_package_that_imports_a_service_breaks_the_import_contract(tmp_path: Path) -> None:
    # A third portion of the namespace, beside services/ and shared/, under the contracts of this checkout.
    (tmp_path / "tersely/intruder").mkdir(parents=True)
    (tmp_path / "tersely/intruder/__init__.py").write_text("import tersely.rollout\n")
    tool = Path(sys.executable).parent / "lint-imports"
    command = [str(tool), "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    environ = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert result.returncode == 1
    assert "tersely.intruder -> tersely.rollout" in result.stdout
