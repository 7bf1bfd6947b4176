"""How a process keeps its memory."""

from __future__ import annotations

import contextlib
import ctypes

# Options of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let this process use its freed memory again instead of giving it back to the system.

    Feature maps of images are large, and by default glibc asks the system for each of them and gives it back soon
    after: on the CPU the system then clears every page of every intermediate result, which took two fifths of the time
    of a training step (docs/performance.md). The process stays as large as it was at its peak. Where the C library is
    another, nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)  # no mapping of its own for a large block
        mallopt(_TRIM_THRESHOLD, -1)  # the end of the heap stays
