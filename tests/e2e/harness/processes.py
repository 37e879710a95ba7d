"""What the kernel says of processes: who descends from whom, what they map, and when one has ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

PROC = Path("/proc")


class Process:
    """Any process, held by a descriptor: its number cannot be taken for another's after it ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        signal.pidfd_send_signal(self._descriptor, number)

    def has_ended(self, timeout_s: float) -> bool:
        """Wait for its end and return whether it came."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        return bool(poller.poll(timeout_s * 1e3))

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self._descriptor)


def held_descendants(pid: int, word: str = "") -> list[Process]:
    """Return ``descendants`` by descriptors, without those that ended meanwhile; the caller closes them."""
    held = []
    for each in descendants(pid, word):
        with contextlib.suppress(ProcessLookupError):
            held.append(Process(each))
    return held


def descendants(pid: int, word: str = "") -> list[int]:
    """Return the living descendants of ``pid`` whose command line has ``word`` as one of its arguments."""
    parents = _parents()
    found, level = [], [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return [each for each in found if not word or word in command_line(each)]


def command_line(pid: int) -> list[str]:
    """Return the arguments of a process; none for one that has ended."""
    try:
        return (PROC / str(pid) / "cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:
        return []


def resident_bytes(pid: int) -> int:
    """Return ``VmRSS``."""
    status = (PROC / str(pid) / "status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def mapped_files(pid: int) -> set[str]:
    """Return the paths of every file that a process has mapped."""
    rows = (PROC / str(pid) / "maps").read_text(encoding="utf-8").splitlines()
    return {fields[5] for fields in (row.split(maxsplit=5) for row in rows) if len(fields) > 5}


def _parents() -> dict[int, int]:
    parents = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # The name in brackets may hold anything; what follows its last bracket is state and parent.
            state, parent = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    return parents
