"""What memory this process has. Linux; no torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STATM = Path("/proc/self/statm")
CLEAR_REFS = Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""``malloc.h``."""
KEPT_BLOCK_BYTES, KEPT_BYTES = 32 << 20, 64 << 20
"""The first is the most that glibc allows."""


def rss_bytes() -> int:
    """Return the resident set of this process: second field of ``/proc/self/statm``, proc(5)."""
    return int(STATM.read_text().split()[1]) * PAGE_BYTES


def reset_peak_rss() -> bool:
    """Let the high-water mark of the resident set begin anew; return whether the system permits that.

    Value 5 of ``/proc/self/clear_refs``, proc(5).
    """
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5", encoding="ascii")
        return True
    return False


def available_bytes() -> int:
    """Return what this process may still take of the main memory: the kernel's estimate, or less by a control group.

    ``MemAvailable`` of ``/proc/meminfo``, proc(5); ``memory.max`` less ``memory.current``, cgroup-v2.rst.
    """
    lines = MEMINFO.read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min((available, *_group_rooms()))


def _group_rooms() -> Iterator[int]:
    with contextlib.suppress(OSError, StopIteration):
        own = next(line for line in OWN_GROUP.read_text(encoding="ascii").splitlines() if line.startswith("0::"))
        group = GROUPS / own.removeprefix("0::").lstrip("/")
        while group.is_relative_to(GROUPS):
            with contextlib.suppress(OSError, ValueError):  # the root has no limit, others may say "max"
                most, current = ((group / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
                yield max(0, int(most) - int(current))
            group = group.parent


def keep_freed_blocks() -> None:
    """Have the C heap keep the blocks that one forward pass frees for the next one, up to 64 MiB (``mallopt(3)``).

    glibc returns large ones to the kernel at once, which then makes each page of them anew: that took up to 40 % of a
    pass. ``trim_heap`` returns them. Does nothing on other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def trim_heap() -> None:
    """Return free pages of the C heap to the system where the C library can (glibc: malloc_trim(3))."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
