"""Main memory as Linux tells it: ``/proc/meminfo``, capped by the control groups.

Swap is never counted: on a Jetson it is zram, which lives in the memory that it would save. Neither are huge pages
that were set aside at boot: the kernel leaves them out of ``MemAvailable``, and nothing is added here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.devices import cgroup

ROOT = Path("/")


class MemoryUnknownError(Exception):
    """The kernel's account of memory cannot be read; the text names the file."""


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes, each figure with who decided it.

    Attributes:
        total_bytes: what exists, or what the control group may use.
        available_bytes: what can be taken without swapping.
        source: of what is available: ``meminfo`` or ``cgroup``.
        total_source: of the total: likewise.
        detail: the file that decided, and how where that is not plain.
    """

    total_bytes: int
    available_bytes: int
    source: str
    total_source: str = "meminfo"
    detail: str = "/proc/meminfo"


def read(root: Path = ROOT) -> Memory:
    """Return main memory: ``MemAvailable``, capped by what the tightest control group leaves.

    A kernel before 3.14 has no ``MemAvailable``. What it would have said is then estimated from below: free memory
    and half of the file cache and of the slabs that can be given back (the kernel keeps at most half of each, see
    ``si_mem_available`` in ``mm/page_alloc.c``).

    Raises:
        MemoryUnknownError: ``/proc/meminfo`` is missing or malformed.
    """
    path = root / "proc/meminfo"
    fields = _meminfo(path)
    total, available, detail = _field(fields, "MemTotal", path), fields.get("MemAvailable"), "/proc/meminfo"
    if available is None:
        cache = sum(fields.get(name, 0) for name in ("Active(file)", "Inactive(file)", "SReclaimable"))
        available = _field(fields, "MemFree", path) + cache // 2
        detail = "/proc/meminfo without MemAvailable: free and half of the file cache"
    found = Memory(total, min(available, total), "meminfo", "meminfo", detail)
    return _capped(found, cgroup.limits(root))


def _capped(found: Memory, limits: list[cgroup.Limit]) -> Memory:
    least = min(limits, key=lambda limit: limit.available_bytes, default=None)
    lowest = min((limit.limit_bytes for limit in limits), default=found.total_bytes)
    total, total_source = (lowest, "cgroup") if lowest < found.total_bytes else (found.total_bytes, "meminfo")
    if least is not None and least.available_bytes < found.available_bytes:
        return Memory(total, least.available_bytes, "cgroup", total_source, least.path)
    return Memory(total, found.available_bytes, found.source, total_source, found.detail)


def _meminfo(path: Path) -> dict[str, int]:
    """Return the lines that count kibibytes, in bytes; lines such as ``HugePages_Free`` count pages and are left."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise MemoryUnknownError(f"{path}: {error.strerror or error}") from None
    fields = {}
    for line in lines:
        name, _, rest = line.partition(":")
        number = rest.split()
        if len(number) == 2 and number[0].isdigit() and number[1] == "kB":  # noqa: PLR2004 - a number and its unit
            fields[name] = int(number[0]) * 1024
    return fields


def _field(fields: dict[str, int], name: str, path: Path) -> int:
    value = fields.get(name)
    if value is None:
        raise MemoryUnknownError(f"{path} has no line {name} in kB")
    return value
