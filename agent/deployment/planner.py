"""Planning with what this device knows: the checkpoint's needs, the memory now, what is served, what was learned.

The arithmetic and the policy are `agent.planning`'s; here its arguments are collected. Used by the planning phase of an
operation and by whoever asks what would be planned now.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.planning.memory import CUDA_CONTEXT_BYTES, Footprint
from agent.planning.plan import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.deployment.models import Served
    from agent.deployment.ports import Ports, Watch
    from agent.planning.budget import Budget
    from agent.planning.plan import Plan, Policy

JsonObject = dict[str, Any]


class Planner:
    """Plans for checkpoints in the store.

    Args:
        ports: the store, the builder that reads definitions, the device, and what was learned.
        policy: returns how freely the device may decide, as configured now.
    """

    def __init__(self, ports: Ports, policy: Callable[[], Policy]) -> None:
        self._ports = ports
        self._policy = policy

    def footprint(self, facts: Mapping[str, Any], watch: Watch) -> Footprint:
        """Return what a checkpoint needs, read by the builder once and kept beside it.

        Raises:
            StepError: the builder's, for a checkpoint that it does not know or cannot use.
        """
        known = self.known_footprint(facts["sha256"])
        if known is not None:
            return known
        store = self._ports.store
        job = {
            "job": "inspect",
            "checkpoint": str(store.source(facts["sha256"])),
            "model_type": facts.get("model_type") or "auto",
        }
        found = self._ports.builder.build(job, watch)
        store.keep_footprint(facts["sha256"], found["footprint"])
        return Footprint.from_json(found["footprint"])

    def known_footprint(self, sha256: str) -> Footprint | None:
        """Return what an earlier look at the checkpoint found, or None."""
        known = self._ports.store.footprint(sha256)
        return None if known is None else Footprint.from_json(known)

    def plan(
        self,
        model: str,
        footprint: Footprint,
        served: Mapping[str, Served],
        *,
        requested: str = "auto",
        budget: Budget | None = None,
    ) -> Plan:
        """Return the plan for ``model``, with the memory as it is now or as ``budget`` says."""
        device = self._ports.device
        tested = device.usable_methods()
        seen = device.budget() if budget is None else budget
        return plan(
            footprint,
            budget_for(model, seen, served),
            requested=requested,
            usable=[name for name, result in tested.items() if result["ok"]],
            policy=self._policy(),
            kernel=str(tested.get("nf4", {}).get("kernel", "bitsandbytes")),
            learned=self._ports.lessons.learned(),
            overhead_bytes=CUDA_CONTEXT_BYTES if seen.has_gpu and not served else 0,
        )


def budget_for(model: str, budget: Budget, served: Mapping[str, Served]) -> Budget:
    """Return ``budget`` as it is for one model: what it holds itself comes back to it, what others hold does not.

    Nor does what others' texts may still take; a little of that is taken already while they are written.
    """
    own = served[model].current if model in served else None
    others = [item.current for name, item in served.items() if name != model]
    return replace(
        budget,
        reclaimable_bytes=own.resident_bytes if own else 0,
        taken_bytes=sum(other.resident_bytes for other in others),
        promised_bytes=sum(other.texts_bytes or 0 for other in others),
        own_promised_bytes=(own.texts_bytes or 0) if own else 0,
    )
