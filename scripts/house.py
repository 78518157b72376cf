"""House rules that no other tool holds: file sizes, namespace folders, things never written, links in the docs.

Each check takes the root of a checkout and returns its faults as lines `path[:line] what`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 500
SPLIT_LINES = 400
OURS = {".py", ".proto", ".toml", ".md", ".sh", ".yml", ".yaml", ".html", ".js", ".css"}
NAMESPACE_FOLDERS = ("services", "services/tersely", "shared", "shared/tersely")
GENERATED = "shared/tersely/v1/"
HERE = ("scripts/house.py", "tests/unit/test_house.py")  # they name what they forbid

IN_CODE = {
    r"^\s*(import|from)\s+(pickle|cloudpickle|dill|shelve|marshal|joblib)\b": "unpickling runs code",
    r"\btorch\.(load|save)\s*\(": "torch.load and torch.save are pickle: use safetensors",
    r"\ballow_pickle\s*=\s*True|\btrust_remote_code\s*=\s*True": "runs code that came with data",
    r"\bweights_only\s*=\s*False": "runs code that came with weights",
    r"\bshell\s*=\s*True|\bos\.system\s*\(": "no shell between us and a program",
    r"\byaml\.(unsafe_)?load\s*\(": "use yaml.safe_load",
    r"except[^:\n]*:\s*pass\b": "a swallowed error",
}
IN_TEXT = {
    r"\b(TODO|FIXME|XXX)\b": "unfinished work belongs in the tracker",
    r"(?<![\w.])/(work|root|home/\w+|Users/\w+)/": "a path of somebody's machine",
    r"^(<{7}|>{7}) ": "a merge conflict",
}


def our_files(root: Path) -> list[Path]:
    """Files that git tracks or would track, generated stubs apart; relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return [
        Path(name) for name in sorted(set(names)) if name and not name.startswith(GENERATED) and (root / name).is_file()
    ]


def _is_ours(path: Path) -> bool:
    return path.suffix in OURS or path.name in ("Makefile", "run") or path.name.startswith("Dockerfile")


def too_long(root: Path, limit: int = MAX_LINES) -> list[str]:
    """Files of ours with more lines than the limit."""
    counts = ((path, len((root / path).read_bytes().splitlines())) for path in our_files(root) if _is_ours(path))
    return [f"{path} has {count} lines, more than {limit}: split it" for path, count in counts if count > limit]


def namespace_inits(root: Path) -> list[str]:
    """`__init__.py` where two source roots share one namespace package."""
    found = (f"{folder}/__init__.py" for folder in NAMESPACE_FOLDERS if (root / folder / "__init__.py").exists())
    return [f"{name} breaks the namespace package: remove it" for name in found]


def banned(root: Path) -> list[str]:
    """Lines that hold what is never written here."""
    return [
        fault
        for path in our_files(root)
        if _is_ours(path) and str(path) not in HERE
        for fault in _banned_in(root, path)
    ]


def _banned_in(root: Path, path: Path) -> Iterator[str]:
    rules = {**IN_TEXT, **(IN_CODE if path.suffix == ".py" else {})}
    text = (root / path).read_text(encoding="utf-8")
    for pattern, reason in rules.items():
        for match in re.finditer(pattern, text, re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{path}:{line} {match.group().strip()!r}: {reason}"


def broken_links(root: Path) -> list[str]:
    """Relative Markdown links to a file or a heading that does not exist."""
    return [fault for path in our_files(root) if path.suffix == ".md" for fault in _broken_in(root, path)]


def _broken_in(root: Path, path: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```", "", (root / path).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (root / path.parent / name) if name else root / path
        if not file.exists():
            yield f"{path} links to {target}, which does not exist"
        elif anchor and anchor not in _anchors(file):
            yield f"{path} links to {target}, but there is no such heading"


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def main() -> int:
    """Runs every check; exit status 1 means faults."""
    faults = [*too_long(ROOT), *namespace_inits(ROOT), *banned(ROOT), *broken_links(ROOT)]
    for warning in set(too_long(ROOT, SPLIT_LINES)) - set(too_long(ROOT)):
        if not any(fault.split()[0] == warning.split()[0] for fault in faults):
            print(f"warning: {warning}", file=sys.stderr)
    print("\n".join(faults), end="\n" if faults else "", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
