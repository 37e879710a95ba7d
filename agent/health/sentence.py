"""The state of the agent in one line, for people who ask the service manager. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.deployment.machine import Operation

MAX_NAMES = 3


def sentence(
    health: Mapping[str, Any],
    operations: Sequence[Operation],
    mode: str,
    *,
    is_connected: bool,
    is_restoring: bool = False,
) -> str:
    """Return what is served, what is going on and what is wrong.

    Args:
        health: the last body of the health reporter; its ``models`` are those that answer.
        operations: those without an end.
        mode: how much of what should be served is tried.
        is_connected: whether the broker is reached.
        is_restoring: whether what should be served is being loaded: until then its absence is no failure.
    """
    models, served = sorted(health.get("models", {})), health.get("served", ())
    missing = sorted({*served} - {*models}) if is_restoring else []
    parts = [
        f"restoring {_names(missing)}" if missing else str(health.get("status", "starting")),
        *([f"serving {_names(models)}"] if models else [] if missing else ["serving nothing"]),
        *(f"{each.command} {each.id}: {each.phase or each.state}" for each in operations[:1]),
        *([f"{len(operations) - 1} waiting"] if len(operations) > 1 else []),
        *([f"mode {mode}"] if mode != "current" else []),
        "broker connected" if is_connected else "no broker",
    ]
    return "; ".join(parts)


def _names(models: Sequence[str]) -> str:
    more = f" and {len(models) - MAX_NAMES} more" if len(models) > MAX_NAMES else ""
    return ", ".join(models[:MAX_NAMES]) + more
