"""Finding the texts that end an answer while it comes in pieces. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopFinder:
    """Lets text through until one of the ``stops`` is complete; holds back what may be the beginning of one.

    Attributes:
        is_found: whether a stop was complete; nothing comes through any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.is_found = False
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> str:
        """Return what may be shown now that ``text`` has come."""
        if self.is_found:
            return ""
        self._held += text
        places = [place for place in map(self._held.find, self._stops) if place >= 0]
        if places:
            self.is_found = True
            return self._release(min(places))
        return self._release(len(self._held) - max(map(self._overlap, self._stops), default=0))

    def flush(self) -> str:
        """Return what was held back, as nothing follows."""
        return "" if self.is_found else self._release(len(self._held))

    def _release(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _overlap(self, stop: str) -> int:
        """Return how many characters at the end could be the beginning of ``stop``."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
