"""What ``auto`` would choose for a served model with such a memory. Plans with what is known, builds nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.deployment.models import Release, Served
    from agent.deployment.planner import Planner
    from agent.planning.budget import Budget
    from agent.planning.memory import Footprint


class Foresight:
    """Asks the planner, without the builder that a first look at a checkpoint needs."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._known: dict[str, Footprint] = {}

    def would_choose(self, model: str, budget: Budget, served: Mapping[str, Served]) -> str | None:
        """Return the method that would be planned for ``model``, None if nothing fits.

        Args:
            model: one of ``served``.
            budget: the device's memory; what the models hold counts as taken, and what this one holds comes back to it.
            served: what is loaded.
        """
        release = served[model].current
        footprint = self._footprint(release.sha256, {item.current.sha256 for item in served.values()})
        if footprint is None:
            return planned(release)  # what it needs is not known yet: the next operation finds out
        chosen = self._planner.plan(model, footprint, served, budget=budget).chosen
        return chosen.method if chosen else None

    def _footprint(self, sha256: str, served: set[str]) -> Footprint | None:
        """Read a footprint once and keep it for as long as the checkpoint is served."""
        self._known = {name: known for name, known in self._known.items() if name in served}
        found = self._known.get(sha256) or self._planner.known_footprint(sha256)
        if found is not None:
            self._known[sha256] = found
        return found


def planned(release: Release) -> str:
    """Return what the plan had said when ``release`` was made; measurement may have overruled it."""
    return str((release.decision or {}).get("planned") or release.method)
