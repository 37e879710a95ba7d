"""What the two kinds of children have in common, and what this process does about its own memory.

Rules for children: each is started from an argument list, never through a shell; each is tied to the thread that
starts it (PR_SET_PDEATHSIG, which the children set themselves), so it must be started from one that lives as long as
the agent; each has a session of its own, so that a Ctrl-C on the terminal reaches the supervisor alone, which stops its
children in order; how a child ends is always turned into words; no child inherits the configuration in the environment,
which may hold passwords: one of them opens files that strangers made.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

_M_ARENA_MAX = -8
"""From glibc's ``malloc.h``."""


def ending(status: int) -> str:
    """Return how a child ended, in words."""
    if status >= 0:
        return f"exited with status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def child_environment() -> dict[str, str]:
    """Return this process's environment without the agent's own settings."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("NIBBLED_")}


def end(child: subprocess.Popen[bytes] | None) -> None:
    """Kill a child that nobody will speak to, if there is one."""
    if child is not None:
        child.kill()
        child.wait()


def use_one_arena() -> None:
    """Let all threads of this process allocate from one arena.

    glibc gives every thread its own otherwise (``mallopt(3)``, ``M_ARENA_MAX``), and each keeps what it ever needed:
    a fair price for speed, which the supervisor has no use for. Does nothing on other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_memory_back() -> None:
    """Return what was freed to the system (``malloc_trim(3)``), which glibc would keep for later.

    Compiling the modules at a first start leaves 10 MiB of it, every deploy some. Does nothing on other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
