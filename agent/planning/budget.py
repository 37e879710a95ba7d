"""The memory that a model may take, and how that is known. Bytes throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Budget:
    """What the device has for a model.

    Attributes:
        available_bytes: what the device says is free for use.
        reserve_bytes: what stays free for everything else.
        source: where ``available_bytes`` comes from: ``nvml``, ``cuda``, ``meminfo``, ``cgroup`` or ``profile``.
        total_bytes: the device's memory.
        limit_bytes: what all models together may take by configuration, or None for ``auto``.
        has_gpu, is_integrated, capability: the device, as the matrix judges it.
        reclaimable_bytes: what the model itself holds now, and gives back when its new form replaces it.
        taken_bytes: what the other models hold; it counts against ``limit_bytes`` alone, being gone from what is free.
        promised_bytes: what the texts of the other models may still take of what is free.
        own_promised_bytes: the same of the model's own old form, while that is there.
    """

    available_bytes: int
    reserve_bytes: int
    source: str
    total_bytes: int
    limit_bytes: int | None = None
    has_gpu: bool = False
    is_integrated: bool = False
    capability: tuple[int, int] | None = None
    reclaimable_bytes: int = 0
    taken_bytes: int = 0
    promised_bytes: int = 0
    own_promised_bytes: int = 0

    @property
    def bytes(self) -> int:
        """What a model may take beside everything that is loaded now."""
        promised = self.promised_bytes + self.own_promised_bytes
        return self._within(self.available_bytes, self.taken_bytes + self.reclaimable_bytes, promised)

    @property
    def room_bytes(self) -> int:
        """What it may take once its own old form is gone."""
        return self._within(self.available_bytes + self.reclaimable_bytes, self.taken_bytes, self.promised_bytes)

    def _within(self, available_bytes: int, taken_bytes: int, promised_bytes: int) -> int:
        free = available_bytes - self.reserve_bytes
        left = free if self.limit_bytes is None else min(free, self.limit_bytes - taken_bytes)
        return max(0, left - promised_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for the decision record."""
        return {
            "bytes": self.bytes,
            "room_bytes": self.room_bytes,
            "available_bytes": self.available_bytes,
            "reclaimable_bytes": self.reclaimable_bytes,
            "promised_bytes": self.promised_bytes + self.own_promised_bytes,
            "reserve_bytes": self.reserve_bytes,
            "limit_bytes": self.limit_bytes,
            "total_bytes": self.total_bytes,
            "source": self.source,
        }

    def __str__(self) -> str:
        own = f" and {size(self.reclaimable_bytes)} that it holds itself" if self.reclaimable_bytes else ""
        limited = "" if self.limit_bytes is None else f", limited to {size(self.limit_bytes)} by configuration"
        promised = f", {size(self.promised_bytes)} promised to other models' texts" if self.promised_bytes else ""
        return (
            f"{size(self.room_bytes)} of {size(self.available_bytes)} available according to {self.source}{own}, "
            f"reserve {size(self.reserve_bytes)}{promised}{limited}"
        )


def size(count: int) -> str:
    """Return ``count`` bytes for people: ``412 MiB``, ``3.1 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:  # noqa: PLR2004 - the step between binary units
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"  # noqa: PLR2004
        value /= 1024
    return f"{value:.1f} GiB"
