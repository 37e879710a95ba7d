"""What a device said, as lines for people. Pure: from the bodies of its messages to text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agent.fleet.rows import table
from agent.fleet.shapes import is_over
from agent.fleet.wanted import missed
from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

JsonObject = dict[str, Any]
NEWEST = 5
"""Operations that are shown of a device."""


def operation_lines(state: JsonObject) -> Iterator[str]:
    """Yield where an operation stands, why it waits, what was decided in the end, and what went wrong."""
    progress = state.get("progress")
    how_far = f" {progress['done']}/{progress.get('total')} {progress.get('unit', '')}" if progress else ""
    yield f"{state['id']} {state['state']} {state.get('phase') or ''}{how_far}".rstrip()
    if state.get("detail"):
        yield f"  {state['detail']}"
    if is_over(state):
        yield from (f"  {sentence}" for sentence in (state.get("decision") or {}).get("explanation", ()))
    error = state.get("error")
    if error:
        yield f"  {error['code']}: {error['detail']}"
        yield from (f"  {name}: {error[name]}" for name in ("hint", "kept") if error.get(name))


def presence_line(device: str, presence: JsonObject) -> str:
    """Return whether a device is there, and since when or why not."""
    when = f" since {presence['at']}" if presence.get("at") else ""
    if presence["state"] == "online":
        return f"{device} is online, nibbled {presence.get('agent') or '?'}, connected{when}"
    return f"{device} is offline{when}: {presence.get('reason') or 'it was cut off'}"


def status_lines(
    device: str, told: Mapping[str, JsonObject], operations: Mapping[str, JsonObject] | None = None
) -> Iterator[str]:
    """Yield what a device serves and can do.

    Args:
        device: its id.
        told: its ``presence``, ``reported`` and ``capabilities``.
        operations: its operations by id, for what became of what it was to serve.
    """
    reported = told["reported"]
    yield presence_line(device, told["presence"])
    for name, model in sorted(reported["models"].items()):
        yield _model(name, model)
        if model.get("previous"):
            yield f"  rollback goes to {_release(model['previous'])}"
    if not reported["models"]:
        yield "no model is served"
    memory = reported["memory"]
    room, total = memory.get("room_bytes"), memory.get("total_bytes")
    if room is not None and total is not None:
        yield f"memory for models: {size(room)} of {size(total)} ({memory.get('source')})"
    if not reported.get("trust", {}).get("require_signature", True):
        yield "trust.require_signature is off: anybody on the broker may deploy"
    if reported.get("config"):
        yield f"changed by set-config: {json.dumps(reported['config'])}"
    if reported.get("generation") is not None:
        yield f"desired generation: {reported['generation']}"
    yield from (f"group {line}" for line in group_lines(reported))
    yield from _missed_lines(reported, operations or {})
    yield _methods(methods := told["capabilities"]["methods"])
    yield from (f"  {name} does not: {found.get('detail')}" for name, found in methods.items() if not found["ok"])
    yield f"as of {reported.get('at')}; everything that it said: --json"


def _missed_lines(reported: Mapping[str, Any], operations: Mapping[str, JsonObject]) -> Iterator[str]:
    found = missed(reported.get("desired") or {})
    if found is None:
        return
    yield f"{found.names} missed; it is not tried again before the next generation"
    for name, goal in found.goals.items():
        error = _error(operations.get(str(goal.get("operation")), {}))
        why = f", {error.get('code')}: {error.get('detail')}" if error else ""
        yield f"  {name}: {goal.get('state')}, operation {goal.get('operation')}{why}"


def group_lines(reported: Mapping[str, Any]) -> list[str]:
    """Return where a device stands towards the documents of its groups, as far as there is anything to say."""
    groups = (reported.get("desired") or {}).get("groups") or {}
    return [f"{name}: {_standing(told)}" for name, told in groups.items() if isinstance(told, dict)]


def _standing(told: Mapping[str, Any]) -> str:
    state, place, percent = told.get("state"), told.get("position"), told.get("percent")
    number = "" if told.get("generation") is None else f"generation {told['generation']} "
    at = f"its place is {place} %" + ("" if percent is None else f", {percent:g} % were in when it said so")
    halted = f"halted: {(told.get('halt') or {}).get('reason') or 'no reason was given'}"
    if state == "halted":
        return f"{number}{halted}"
    if state == "waiting":
        return f"{number}waits until {told.get('joins_at')}; {at}"
    if state == "outside":
        return f"{number}is not for this device; {at}"
    if state == "no_clock":
        return f"{number}waits: its clock is not synchronised, and it would join at {told.get('joins_at')}"
    if state == "listening":
        return f"{number}waits for what the broker keeps of halts"
    return f"{number}joined; {halted}" if told.get("halt") else f"{number}joined"


def health_lines(health: JsonObject | None, operations: Iterable[JsonObject]) -> Iterator[str]:
    """Yield how a device is, its answers so far, and its newest operations.

    Args:
        health: the last word on it, None where none was heard.
        operations: states of operations, as they are retained.
    """
    if health is None:
        yield "health: not heard; devices tell it every 30 s: --listen 40"
    else:
        yield f"health: {health['status']}, as of {health.get('at')}"
        yield from (f"  ! {reason}" for reason in health.get("reasons", ()))
        for name, model in sorted(health.get("models", {}).items()):
            p50 = (model.get("latency_ms") or {}).get("p50")
            yield f"  {name}: {model.get('requests')} requests, {model.get('failures')} failed" + (
                f", p50 {p50:.1f} ms" if p50 is not None else ""
            )
    for state in sorted(operations, key=lambda each: str(each.get("at")), reverse=True)[:NEWEST]:
        error = _error(state)
        code = f" {error.get('code')}" if error else ""
        yield f"{state.get('at')} {state.get('id')} {state.get('state')} {state.get('phase') or ''}".rstrip() + code


def _error(state: Mapping[str, Any]) -> JsonObject:
    """Return what went wrong with an operation, nothing where that is no object: one that is bad hides no other."""
    error = state.get("error")
    return error if isinstance(error, dict) else {}


def comparison_lines(rows: Sequence[JsonObject]) -> list[str]:
    """Return the table of a comparison: what each method takes and how well it answers, or why it does not."""
    head = ("method", "fits", "takes", "agrees", "accuracy", "p50", "passes", "what")
    return table(head, [_compared(row) for row in rows]) if rows else []


def config_lines(changed: Mapping[str, Any], at: str = "") -> list[str]:
    """Return settings as ``section.key=value``; a line that says so where there are none."""
    lines = []
    for key, value in changed.items():
        whole = f"{at}{key}"
        lines += config_lines(value, f"{whole}.") if isinstance(value, dict) else [f"{whole}={json.dumps(value)}"]
    return lines or ["nothing was changed over MQTT: the file of the device counts"]


def _compared(row: JsonObject) -> tuple[str, ...]:
    share, p50 = row.get("agreement"), row.get("latency_p50_ms")
    takes = row.get("resident_bytes") or row.get("estimated_bytes")
    return (
        str(row["method"]),
        "yes" if row.get("fits") else "no",
        "-" if takes is None else size(takes),
        "-" if share is None else f"{share:.1%}",
        "-" if row.get("accuracy") is None else f"{row['accuracy']:.1%}",
        "-" if p50 is None else f"{p50:.1f} ms",
        "yes" if row.get("passes") else "no",
        "; ".join(filter(None, (row.get("why"), *(row.get("complaints") or ())))),
    )


def _methods(methods: JsonObject) -> str:
    if not methods:  # a self-test that failed names every method, and why
        return "methods that work: not known yet, the self-test is still running"
    return f"methods that work: {', '.join(name for name, found in methods.items() if found['ok']) or 'none'}"


def _model(name: str, model: JsonObject) -> str:
    agreement = model.get("agreement")
    agrees = f", {agreement:.1%} of its answers are the source's" if agreement is not None else ""
    resident = model.get("resident_bytes")
    takes = f", {size(resident)}" if resident is not None else ""
    missing = model.get("stands_in_for")
    stands_in = f"; it stands in for {_release(missing)}, which cannot be served" if missing else ""
    since = model.get("since") or "an unknown time"
    return f"{name} {_release(model)}: {model['state']} since {since}{takes}{agrees}{stands_in}"


def _release(release: JsonObject) -> str:
    return f"{release['version']} as {release['method']}"
