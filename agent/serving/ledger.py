"""Counters by release, kept past an unload: in the life of a process they never fall. On the event loop only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from agent.serving.generation.stats import Generated
from agent.serving.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

KEPT = 16
"""Unloaded releases of one model whose counters are kept, the newest, and models of which none is loaded; what was
forgotten counts from nothing again."""
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


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

    def open(
        self, model: str, version: str, release: str, loaded: Collection[str] = (), models: Collection[str] = ()
    ) -> Entry:
        """Return what a release that was loaded counts in: what it counted in before, if that is still known.

        Args:
            model: its name.
            version: what clients know it by.
            release: the supervisor's id.
            loaded: other releases of the model that are loaded; those are never forgotten.
            models: other models of which a release is loaded; neither are those.
        """
        entries = _renewed(self._models, model, dict, lambda name: name in models)
        return _renewed(entries, (version, release), Entry, lambda key: key[1] in loaded)

    def entries(self) -> dict[tuple[str, str, str], Entry]:
        """Return every entry by model, version and release."""
        return {(model, *key): entry for model, entries in self._models.items() for key, entry in entries.items()}


def _renewed(
    kept: dict[_Key, _Value], newest: _Key, make: Callable[[], _Value], is_loaded: Callable[[_Key], bool]
) -> _Value:
    """Return the value of a key, which stands last from now on; of the others that are not loaded ``KEPT`` stay."""
    value = kept[newest] = kept.pop(newest) if newest in kept else make()
    idle = [key for key in kept if key != newest and not is_loaded(key)]
    for key in idle[: max(0, len(idle) - KEPT)]:
        del kept[key]
    return value
