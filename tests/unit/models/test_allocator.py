"""The allocator's setting holds where it exists, and says so where it does not."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tersely.models import allocator

HELD = """
import resource
from tersely.models.allocator import keep_freed_memory
assert keep_freed_memory()
def faults(size=24 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes(1) * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
assert faults() < 2000, "24 MiB came from the kernel again"
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_a_large_block_that_was_freed_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_freed_memory() is False
