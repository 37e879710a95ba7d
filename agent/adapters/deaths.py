"""How a child died, with what the kernel knows of it: a kill for lack of memory is told with its numbers."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from agent.adapters.processes import ending
from agent.devices import oom
from agent.devices.memory import ROOT
from agent.planning.budget import size

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

POLL_S = 0.02


class Coroner:
    """Called before a child is started, and asked when it has ended.

    Args:
        root: of the file system.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._kills = oom.kills(root)

    def was_memory(self, status: int) -> bool | None:
        """Whether the kernel killed for memory while the child lived; None for a SIGKILL that nobody explains."""
        if status != -signal.SIGKILL:
            return False
        now = oom.kills(self._root)
        return None if now is None or self._kills is None else now > self._kills

    def words(self, status: int, peak_bytes: int | None = None) -> str:
        """Return how it ended; of a SIGKILL also whose doing it was, what it held at its peak and what is left."""
        if status != -signal.SIGKILL:
            return ending(status)
        whose = {True: ": the kernel ran out of memory", False: ", and not by the kernel for lack of memory", None: ""}
        held = [] if peak_bytes is None else [f"it held {size(peak_bytes)} at its peak"]
        return "; ".join((ending(status) + whose[self.was_memory(status)], *held, oom.account(self._root)))


def reap(child: subprocess.Popen[bytes], timeout_s: float) -> tuple[int, int | None]:
    """Wait for a child's end, by force after ``timeout_s`` seconds.

    Returns:
        Its exit status as ``Popen`` has it, and the most bytes that it held in memory (``ru_maxrss``, wait4(2)); None
        when ``Popen`` has met its end before.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if child.returncode is not None:
            return child.returncode, None
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
            return child.returncode, usage.ru_maxrss * 1024
        if time.monotonic() >= deadline:
            child.kill()
            deadline = float("inf")
        time.sleep(POLL_S)
