"""A figure is a value and the word of who told it; a chain of witnesses is a list, and the first who knows decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Figure(Generic[T]):
    """A value with its source; both are None when nobody knows."""

    value: T | None
    source: str | None


def first(*testimonies: tuple[str, T | None]) -> Figure[T]:
    """Return the first of ``(source, value)`` whose value is known, as a figure."""
    for source, value in testimonies:
        if value is not None:
            return Figure(value, source)
    return Figure(None, None)


def values(figures: dict[str, Figure[Any]]) -> dict[str, Any]:
    """Return figures for a report: the values by name, and beside them ``sources`` with who told those that are known.

    Values stay plain numbers under plain names, so that a collector can plot them.
    """
    sources = {name: figure.source for name, figure in figures.items() if figure.source is not None}
    return {**{name: figure.value for name, figure in figures.items()}, "sources": sources}
