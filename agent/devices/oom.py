"""What the kernel's OOM killer did on this box. Reads only; never raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.devices import files, memory
from agent.devices.memory import ROOT, MemoryUnknownError
from agent.planning.budget import size

if TYPE_CHECKING:
    from pathlib import Path


def kills(root: Path = ROOT) -> int | None:
    """Return how many processes it has ended since the box booted, those of control groups included.

    None where the kernel does not count them: ``oom_kill`` is in ``/proc/vmstat`` since Linux 4.13.
    """
    for line in (files.text(root / "proc/vmstat") or "").splitlines():
        name, _, number = line.partition(" ")
        if name == "oom_kill" and number.strip().isdigit():
            return int(number)
    return None


def account(root: Path = ROOT) -> str:
    """Return in words what is left of which memory."""
    try:
        left = memory.read(root)
    except MemoryUnknownError as error:
        return str(error)
    return f"{size(left.available_bytes)} of {size(left.total_bytes)} are available according to {left.detail}"
