"""Swap as Linux tells it: proc_swaps(5). On a Jetson it is zram, which lives in the memory that it would save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.devices import files
from agent.devices.system import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Swap:
    """All areas of one kind together, in bytes."""

    total_bytes: int = 0
    used_bytes: int = 0


def read(root: Path = ROOT) -> tuple[Swap, Swap]:
    """Return the swap on disks and the swap in compressed memory (zram). Never raises."""
    disk, zram = Swap(), Swap()
    for line in (files.text(root / "proc/swaps") or "").splitlines()[1:]:
        words = line.split()
        if len(words) < 4 or not (words[-3].isdigit() and words[-2].isdigit()):  # noqa: PLR2004 - name … size used priority
            continue
        total, used = int(words[-3]) * 1024, int(words[-2]) * 1024
        if words[0].startswith("/dev/zram"):
            zram = Swap(zram.total_bytes + total, zram.used_bytes + used)
        else:
            disk = Swap(disk.total_bytes + total, disk.used_bytes + used)
    return disk, zram
