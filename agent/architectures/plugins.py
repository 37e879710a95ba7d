"""Users' own model types: entry points of the group ``nibbled.architectures``, each naming a ``ModelType`` value.

A plug-in is imported when its type is asked for, never before: a broken one must not take the built-in types down.
It cannot replace a built-in type.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from agent.architectures.errors import BrokenPlugInError
from agent.architectures.model_type import ModelType

GROUP = "nibbled.architectures"


def announced() -> dict[str, EntryPoint]:
    """Return the entry points by the model type that each announces, nothing imported yet."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def load(entry: EntryPoint) -> ModelType:
    """Import one plug-in.

    Raises:
        BrokenPlugInError: the import fails, or gives something else than a ``ModelType`` of that name.
    """
    try:
        loaded = entry.load()
    except Exception as error:
        raise BrokenPlugInError(entry.name, entry.value, f"{type(error).__name__}: {error}") from error
    if not isinstance(loaded, ModelType):
        raise BrokenPlugInError(entry.name, entry.value, f"it is a {type(loaded).__name__}, not a ModelType")
    if loaded.name != entry.name:
        raise BrokenPlugInError(entry.name, entry.value, f"it calls itself {loaded.name!r}")
    return loaded
