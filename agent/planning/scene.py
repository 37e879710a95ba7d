"""One look at the memory and at what is served: what is short, and what could be better. Pure.

A scene judges a moment; how long something has to be so before it counts is for `agent.planning.watch`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.planning.budget import Budget

    WouldChoose = Callable[[str, Budget], str | None]

Direction = Literal["down", "up"]

QUALITY = ("fp4-dq", "fp4", "nf4-dq", "nf4", "int8", "fp16", "fp32")
"""From the smallest tables to the best answers."""


def rank(method: str) -> float:
    """Return the place of a method in ``QUALITY``; a name without one is neither better nor smaller than any."""
    return float(QUALITY.index(method)) if method in QUALITY else float("nan")


@dataclass(frozen=True)
class Held:
    """A model as it is served.

    Attributes:
        release: identifies what is served; another one is another situation.
        method: how it is stored.
        planned: what the plan had said, which measurement may have overruled.
        is_auto: whether ``auto`` chose the method.
        resident_bytes: what it holds.
    """

    release: str
    method: str
    planned: str
    is_auto: bool
    resident_bytes: int


@dataclass(frozen=True)
class Shortage:
    """What is wrong for one model, and the method that would mend it where one can and may."""

    sentence: str
    remedy: str | None = None


@dataclass(frozen=True)
class Scene:
    """The budget, with every model loaded, and the models.

    Attributes:
        budget: the device's memory; what the models hold counts as taken.
        served: every model that is loaded.
        would_choose: what ``auto`` would choose for a model with such a budget, None if nothing fits.
    """

    budget: Budget
    served: Mapping[str, Held]
    would_choose: WouldChoose

    @property
    def is_broken(self) -> bool:
        """Whether less is free than the reserve."""
        return self.budget.available_bytes < self.budget.reserve_bytes

    def room_bytes(self, name: str) -> int:
        """Return what a model may take, its own memory included."""
        free, limit = self._free_bytes(name), self.budget.limit_bytes
        return free if limit is None else min(free, limit)

    def shortage(self, name: str) -> Shortage | None:
        """Return what is wrong for a model: too little is free, or it is larger than the configured budget wants it.

        The configured budget has no noise: where it is what binds, a smaller plan than the last is enough. Where the
        reserve is broken, what fits is smaller than what is served, whatever was planned for that.
        """
        if not self.is_broken and not self._is_limited(name):
            return None
        held = self.served[name]
        choice = self.would_choose(name, self.budget)
        if choice is None:
            return Shortage(f"nothing fits in place of {name} by {held.method}")
        if choice == held.method or not (self.is_broken or rank(choice) < rank(held.planned)):
            return Shortage(f"nothing smaller than {name} by {held.method} is planned") if self.is_broken else None
        if not held.is_auto:
            return Shortage(f"{choice} would fit, but an operator chose {held.method} for {name}")
        return Shortage(f"{name} should go from {held.method} to {choice}", choice)

    def improvement(self, name: str, margin: float) -> str | None:
        """Return the better method that would be chosen if ``margin`` of the budget, 0 to 1, were taken away."""
        held = self.served[name]
        if not held.is_auto or self.is_broken:
            return None
        spare_bytes = round(margin * max(0, self._free_bytes(name)))
        limit = self.budget.limit_bytes
        less = replace(
            self.budget,
            available_bytes=self.budget.available_bytes - spare_bytes,
            limit_bytes=None if limit is None else round(limit * (1 - margin)),
        )
        choice = self.would_choose(name, less)
        return choice if choice is not None and rank(choice) > rank(held.planned) else None

    def __str__(self) -> str:
        budget = self.budget
        missing = budget.reserve_bytes - budget.available_bytes
        how = f"{size(missing)} less than the reserve of" if missing > 0 else "of which the reserve is"
        limited = "" if budget.limit_bytes is None else f", memory.budget is {size(budget.limit_bytes)}"
        available = size(max(0, budget.available_bytes))
        return f"{available} available according to {budget.source}, {how} {size(budget.reserve_bytes)}{limited}"

    def _free_bytes(self, name: str) -> int:
        """Return what others leave to a model, whatever the configuration says."""
        return max(0, self.budget.available_bytes + self.served[name].resident_bytes - self.budget.reserve_bytes)

    def _is_limited(self, name: str) -> bool:
        limit = self.budget.limit_bytes
        return limit is not None and limit < self._free_bytes(name)
