"""The builder as a process: it dies with its parent, dies first under memory pressure, and keeps stdout for events.

Linux calls, each best effort where the system may refuse it. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

_PR_SET_PDEATHSIG = 1
"""``linux/prctl.h``."""
_M_MMAP_THRESHOLD = -3
"""``malloc.h``."""
_forgotten_peak_bytes = 0
YIELDING = 10
"""By how much a process is nicer that nobody's operation waits for."""
LARGE_BLOCK_BYTES = 8 << 20
"""Above the 4 MiB in which a Linear is unpacked: those pieces are reused, so that times stay what a server has."""


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent's thread ends; exit if that has happened already.

    A parent that ended before this call is noticed by the change of parent. One that ended even before the first line
    closed the pipe of the job, so that no job arrives.
    """
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent process ended")


def be_first_to_die() -> None:
    """Ask the kernel to end this process first when memory runs out; some containers forbid it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def give_way() -> None:
    """Let everything else on this machine go first where processors are short."""
    with contextlib.suppress(OSError):
        os.nice(YIELDING)


def claim_stdout() -> TextIO:
    """Return the real stdout for events, and send whatever libraries print there to stderr from now on."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return events


def send(events: TextIO, event: Mapping[str, Any]) -> None:
    """Write one event as a line; NaN is no JSON and is refused here rather than by the reader."""
    events.write(json.dumps(event, allow_nan=False) + "\n")
    events.flush()


def keep_little_freed_memory() -> None:
    """Have large blocks go back to the kernel as soon as they are freed, from now on.

    glibc raises the size from which it does so with every large block that is freed (``mallopt(3)``,
    ``M_MMAP_THRESHOLD``), and a heap in which short-lived weights and lasting codes take turns is never emptied. The
    price is fresh pages for each block. Does nothing on other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        libc.malloc_trim(0)


def peak_rss_bytes() -> int:
    """Return the high-water mark of this process's resident memory, file pages included."""
    return max(_forgotten_peak_bytes, _status_bytes("VmHWM"))


def begin_peak() -> int | None:
    """Start the high-water mark anew and return the resident memory it starts from; None where that is forbidden.

    Freed memory is given back first (``malloc_trim``), or what is measured would be hidden in it.
    """
    global _forgotten_peak_bytes  # noqa: PLW0603 - the kernel has one mark a process, and so has this module
    _forgotten_peak_bytes = peak_rss_bytes()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets VmHWM
    except OSError:
        return None
    return _status_bytes("VmRSS")


def end_peak(begin_bytes: int) -> int:
    """Return how far resident memory rose since ``begin_peak``."""
    return max(0, _status_bytes("VmHWM") - begin_bytes)


def anonymous_bytes() -> int:
    """Return the resident memory that no file backs."""
    return _status_bytes("RssAnon")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
