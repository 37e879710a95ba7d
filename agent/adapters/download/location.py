"""Where a file lies, for one try: the address to ask, and what an answer without the file means there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Advice = Callable[[int, Mapping[str, str]], str | None]
"""Returns the next step after an answer that is final, from its status and headers; None where none is known."""


def no_advice(_status: int, _headers: Mapping[str, str]) -> str | None:
    """Know nothing."""
    return None


@dataclass(frozen=True)
class Location:
    """An address over http or https.

    Attributes:
        url: it, as it is asked for first.
        schemes: what may be asked for, redirects included.
        headers: for that first request alone; no redirect takes them along.
        advice: what follows from an answer without the file.
    """

    url: str
    schemes: frozenset[str]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    advice: Advice = no_advice
