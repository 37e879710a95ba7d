"""What the page shows, cut into the sections that are sent when they change. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

JsonObject = dict[str, Any]
_ABOUT = ("device_id", "agent", "broker", "connection", "inference")
_ELSEWHERE = ("models", "operations")
"""Parts of the health report that other sections tell better."""
_OUTCOME = ("method", "reason", "compare")


def sections(
    status: Mapping[str, Any], *, live: JsonObject, memory: JsonObject, more: Mapping[str, Any]
) -> dict[str, JsonObject]:
    """Return the sections.

    Args:
        status: the body of ``status.json``.
        live: what the meter counts.
        memory: the budget as it was last seen.
        more: what the page has to know besides: what needs a token, methods that work here.
    """
    return {
        "about": {**{name: status[name] for name in _ABOUT}, **more},
        "health": {name: value for name, value in status["health"].items() if name not in _ELSEWHERE},
        "memory": memory,
        "models": dict(status["models"]),
        "operations": {"newest": [_brief(each) for each in status["operations"]]},
        "live": live,
    }


def _brief(operation: Mapping[str, Any]) -> JsonObject:
    """Leave of a decision what its operation came to: what was weighed is told with the model that is served."""
    decision = operation["decision"]
    outcome = decision and {name: decision[name] for name in _OUTCOME if name in decision}
    return {**operation, "decision": outcome}
