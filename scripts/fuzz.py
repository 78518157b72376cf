"""Tries made-up and damaged input on everything that reads what others wrote: `python scripts/fuzz.py`.

Runs tests/fuzz with many more inputs than `make test` does, and writes build/fuzz.json: {"inputs", "crashes", ...}.
A crash is any failed test: an exception that is no refusal with a way out, a hang, or damage that was accepted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tersely.testing.fuzzing import INPUTS_ENV

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "build" / "fuzz.json"
ROUND = 500
"""Inputs per test and round: between rounds the time is looked at."""


def one_round(inputs: int, seed: int, seconds: float) -> tuple[dict[str, int], list[str], str]:
    """Runs all tests once; inputs tried by test, tests that failed, and what pytest said of them."""
    part = RESULT.with_name(f"fuzz-{os.getpid()}.json")
    part.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--timeout=0", "tests/fuzz"]
    command += [f"--hypothesis-seed={seed}"]
    environ = {**os.environ, INPUTS_ENV: str(inputs), "TERSELY_FUZZ_RESULT": str(part)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {}, [f"a hang: seed {seed} took longer than {seconds:.0f} s"], ""
    if not part.exists():
        return {}, [f"pytest ended with {done.returncode}"], done.stdout + done.stderr
    found = json.loads(part.read_text())
    part.unlink()
    return found["tried"], found["failed"], done.stdout


def main() -> int:
    """Runs rounds until there were enough inputs or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="stop after so many (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=900.0, help="begin no round after so long (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next ones count on")
    options = parser.parse_args()
    RESULT.parent.mkdir(exist_ok=True)
    began, rounds = time.monotonic(), 0
    tried: dict[str, int] = {}
    failed: list[str] = []
    while sum(tried.values()) < options.inputs and not failed and time.monotonic() - began < options.seconds:
        counts, failed, said = one_round(ROUND, options.seed + rounds, max(600.0, options.seconds))
        rounds += 1
        for name, count in counts.items():
            tried[name] = tried.get(name, 0) + count
        took = time.monotonic() - began
        print(f"round {rounds}: {sum(tried.values())} inputs, {len(failed)} failed, {took:.0f} s", flush=True)
        if failed:
            print(said)
        result = {
            "inputs": sum(tried.values()),
            "crashes": len(failed),
            "failed": failed,
            "seconds": round(took),
            "seed": options.seed,
            "rounds": rounds,
            "by_test": dict(sorted(tried.items())),
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {RESULT.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
