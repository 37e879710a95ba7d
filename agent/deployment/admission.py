"""Whether a release still fits when it is about to be loaded: since the plan there was a build, and others take memory.

Pure. What fitted beside the old form may now only fit in its place, and what fits nowhere is refused before the server
touches it: the kernel would end the process that answers. Half of the reserve may be used for that, since a plan that
was just made must not fail for a few pages that come and go.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.planning.budget import size
from agent.planning.memory import Estimate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.deployment.models import Release
    from agent.planning.budget import Budget


def unloads_first(decision: Mapping[str, Any], method: str, budget: Budget) -> bool:
    """Return whether the old form has to go before the new one is loaded.

    Args:
        decision: the plan's record; one without an estimate for the method is not judged again.
        method: what was built.
        budget: the memory now, with what the model itself holds.

    Raises:
        StepError: ``insufficient_memory``, when there is no room for it in any way.
    """
    planned = decision.get("admission") == "unload_first"
    estimate = decision.get("estimates", {}).get(method)
    if estimate is None:
        return planned
    needed = Estimate.from_json(estimate).total_bytes
    lenient = replace(budget, reserve_bytes=budget.reserve_bytes // 2)
    if needed > lenient.room_bytes:
        raise StepError(
            ErrorCode.INSUFFICIENT_MEMORY,
            f"memory shrank since this was planned: {method} needs {size(needed)}, budget {lenient}",
            room_hint(budget),
            retryable=True,
        )
    return planned or needed > lenient.bytes


def terms(wanted: Mapping[str, str], budget: Budget | None, release: Release) -> dict[str, Any]:
    """Return what a release may take beside its weights, in the words of the server.

    Args:
        wanted: how it is to be served, as configured.
        budget: the memory for this model when it was last looked at, None if nobody did.
        release: what is loaded; its plan says what its texts may take.
    """
    spare = max(0, budget.bytes - (release.texts_bytes or 0)) if budget else 0
    # Half of what is left: requests and the next release need memory too.
    return {**wanted, "allowed_bytes": spare // 2, "texts_bytes": release.texts_bytes}


def room_hint(budget: Budget) -> str:
    """Return what makes room: what is free helps nobody where the configured budget is what binds."""
    if budget.limit_bytes is not None and budget.limit_bytes < budget.available_bytes - budget.reserve_bytes:
        return "raise memory.budget, or undeploy another model"
    return "free memory, undeploy another model, or lower memory.reserve"
