"""``enum.StrEnum``, which Python 3.10 does not have yet."""

from __future__ import annotations

from enum import Enum


class StrEnum(str, Enum):
    """Words of a fixed set, each written as its value."""

    def __str__(self) -> str:
        return str(self.value)
