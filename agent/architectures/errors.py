"""What can go wrong between a checkpoint and a module. Every error names what was found and the next step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_LISTED_KEYS = 8
"""Keys quoted in a message: enough to tell a foreign model, few enough to read in a report."""


def quoted(keys: Iterable[str]) -> str:
    """Return the first keys and how many follow, for a message."""
    listed = list(keys)
    rest = len(listed) - _LISTED_KEYS
    return ", ".join(repr(key) for key in listed[:_LISTED_KEYS]) + (f" and {rest} more" if rest > 0 else "")


class ArchitectureError(ValueError):
    """Base of all errors of this package."""


class UnknownModelTypeError(ArchitectureError):
    """A model type that is neither built in nor a plug-in."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown model type {name!r}; known: {', '.join(known)}")
        self.name = name


class UnrecognisedCheckpointError(ArchitectureError):
    """A checkpoint whose keys or shapes are those of no model type, or of a type in a form that cannot be built."""


class ContradictingTypeError(ArchitectureError):
    """A checkpoint said to be of one model type that holds the tensors of another."""

    def __init__(self, hint: str, found: str | None, keys: Iterable[str]) -> None:
        looks = f"its tensors are those of {found!r}" if found else "its tensors are those of no known type"
        super().__init__(
            f"the checkpoint is said to be {hint!r}, but {looks} (keys: {quoted(keys)}); "
            "correct the model type or leave it to recognition"
        )
        self.hint = hint
        self.found = found


class BrokenPlugInError(ArchitectureError):
    """A model type that another distribution announces but fails to deliver."""

    def __init__(self, name: str, value: str, reason: str) -> None:
        super().__init__(f"plug-in model type {name!r} ({value}) cannot be used: {reason}; fix or uninstall it")
        self.name = name
