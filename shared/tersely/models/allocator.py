"""glibc's allocator set for a process that makes and drops the same large tensors over and over.

By default glibc takes each large block fresh from the kernel and gives it back at once: every step pays for new pages,
zeroed one by one. Kept in the process they are used again. Measured on two cores, a learner step of SmolLM2-135M (2
prompts of 257 tokens x 8 x 64): 6.4 s before, 5.1 s after, peak memory 5.1 to 5.5 GiB.
"""

from __future__ import annotations

import ctypes
import platform

import structlog

log = structlog.get_logger(__name__)

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt(3)
_INT_MAX = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next allocation; False where the C library is another one.

    The process then holds its peak until it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, _INT_MAX) == 1
    if not done:
        log.debug("glibc refused a setting of its allocator")
    return bool(done)
