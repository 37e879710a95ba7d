"""Memory, load and disk as Linux tells them: ``/proc``, cgroup v2 and the file system."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes, and which of the two limits decided.

    Attributes:
        total_bytes: what exists, or what the control group may use.
        available_bytes: what can be taken without swapping; swap is never counted.
        source: ``meminfo`` or ``cgroup``.
    """

    total_bytes: int
    available_bytes: int
    source: str


def memory(root: Path = ROOT) -> Memory:
    """Return main memory: ``MemAvailable``, capped by what the control group leaves.

    Swap is not counted: on a Jetson it is zram, which lives in the memory that it would save.
    """
    fields = _meminfo(root)
    total, available = fields["MemTotal"], fields["MemAvailable"]
    limit = _cgroup(root)
    if limit is not None and limit.available_bytes < available:
        return limit
    return Memory(total, available, "meminfo")


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
        return "unknown"


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


def _meminfo(root: Path) -> dict[str, int]:
    fields = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()
        if number and number[0].isdigit():
            fields[name] = int(number[0]) * 1024
    return fields


def _cgroup(root: Path) -> Memory | None:
    """Return what the control group (v2) of this process leaves, None without a limit."""
    try:
        name = (root / "proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
    except OSError:
        return None
    group = root / "sys/fs/cgroup" / name
    try:
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text().strip()
    except OSError:
        return None
    if limit == "max":
        return None
    return Memory(int(limit), max(0, int(limit) - int(used)), "cgroup")
