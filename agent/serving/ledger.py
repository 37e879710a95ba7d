"""Counters by release, kept past an unload: in the life of a process they never fall. On the event loop only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.serving.generation.stats import Generated
from agent.serving.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Collection

KEPT = 16
"""Unloaded releases of one model whose counters are kept, the newest; what was forgotten counts from nothing again."""


@dataclass(eq=False)
class Entry:
    """What one release has answered, in all the times that it was loaded.

    Attributes:
        stats: of its requests.
        generated: of its texts; without any, nothing of them is told.
    """

    stats: Stats = field(default_factory=Stats)
    generated: Generated = field(default_factory=Generated)


class Ledger:
    """The counters of all models, by model, version and release."""

    def __init__(self) -> None:
        self._models: dict[str, dict[tuple[str, str], Entry]] = {}

    def open(self, model: str, version: str, release: str, loaded: Collection[str] = ()) -> Entry:
        """Return what a release that was loaded counts in: what it counted in before, if that is still known.

        Args:
            model: its name.
            version: what clients know it by.
            release: the supervisor's id.
            loaded: other releases of the model that are loaded; those are never forgotten.
        """
        entries = self._models.setdefault(model, {})
        entry = entries.pop((version, release)) if (version, release) in entries else Entry()
        entries[version, release] = entry  # the newest stands last
        idle = [key for key in entries if key != (version, release) and key[1] not in loaded]
        for key in idle[: max(0, len(idle) - KEPT)]:
            del entries[key]
        return entry

    def entries(self) -> dict[tuple[str, str, str], Entry]:
        """Return every entry by model, version and release."""
        return {(model, *key): entry for model, entries in self._models.items() for key, entry in entries.items()}
