"""Named places at which tests make the disk fail or a process end, just before and just after something lasting.

A product arms none of them: ``hit`` looks a name up in an empty table. What fills the table lies among the tests, which
no wheel contains (``tests/torture/arming.py``), and nothing of the agent reads a variable or a file that could.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

armed: dict[str, Callable[[str], None]] = {}
"""What happens at a point, by its name."""


def hit(name: str) -> None:
    """Pass the point ``name``; raises whatever a test wants raised there."""
    action = armed.get(name)
    if action is not None:
        action(name)


class around:  # noqa: N801 - reads like the statement that it is
    """``with around("store.admit.rename"):`` passes a point before its block, and one after it unless it raised."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        hit(f"{self._name}.before")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            hit(f"{self._name}.after")
