"""The device with the reserve and the budget that are configured now laid over what its probe says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from agent.deployment.ports import Device

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.planning.budget import Budget

JsonObject = dict[str, Any]


class Probe(Device, Protocol):
    """A device that also says what it saw last, and describes itself for reports."""

    def last_budget(self) -> Budget | None:
        """Return the budget as it was last seen, None before the first look."""

    def facts(self) -> JsonObject:
        """Return the device for health reports; ``memory`` holds the budget's numbers."""


class LimitedDevice:
    """Implements the ``Device`` port on a probe.

    Args:
        probe: looks at the box.
        reserve_bytes: returns what a model may never take.
        limit_bytes: returns the configured budget, or None.
    """

    def __init__(
        self, probe: Probe, *, reserve_bytes: Callable[[], int], limit_bytes: Callable[[], int | None]
    ) -> None:
        self._probe = probe
        self._reserve_bytes = reserve_bytes
        self._limit_bytes = limit_bytes

    def budget(self) -> Budget:
        """Return the memory that a model may take now, with its source."""
        return self._limited(self._probe.budget())

    def last_budget(self) -> Budget | None:
        """Return the budget as it was last seen, None before the first look."""
        last = self._probe.last_budget()
        return None if last is None else self._limited(last)

    def usable_methods(self) -> Mapping[str, JsonObject]:
        """Return the methods whose self-test passed, with what it found."""
        return self._probe.usable_methods()

    def test_again(self) -> Mapping[str, JsonObject]:
        """Run the self-test now and return what it found."""
        return self._probe.test_again()

    def facts(self) -> JsonObject:
        """Return the device for health reports."""
        facts, budget = self._probe.facts(), self.last_budget()
        told = budget.to_json() if budget else {}
        memory = {name: told.get(name, value) for name, value in facts["memory"].items()}
        return {**facts, "memory": memory}

    def _limited(self, budget: Budget) -> Budget:
        return replace(budget, reserve_bytes=self._reserve_bytes(), limit_bytes=self._limit_bytes())
