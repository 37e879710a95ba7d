"""Load, disk, processes and boot as Linux tells them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path("/")
UNKNOWN_BOOT = "unknown"


def resident_bytes(pid: int | str = "self", root: Path = ROOT) -> int | None:
    """Return the resident set of a process, or None when it is gone."""
    try:
        pages = int((root / "proc" / str(pid) / "statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def boot_id(root: Path = ROOT) -> str:
    """Return the id of this run of the operating system."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return UNKNOWN_BOOT


def load() -> dict[str, float | int]:
    """Return processors and load averages."""
    one, five, fifteen = os.getloadavg()
    return {
        "cpus": os.cpu_count() or 1,
        "load_1": round(one, 2),
        "load_5": round(five, 2),
        "load_15": round(fifteen, 2),
    }


def disk(path: Path) -> dict[str, int]:
    """Return total and free bytes of the file system that holds ``path``."""
    usage = shutil.disk_usage(path)
    return {"total_bytes": usage.total, "free_bytes": usage.free}
