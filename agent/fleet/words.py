"""What a device said, as lines for people. Pure: from the bodies of its messages to text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

JsonObject = dict[str, Any]


def operation_lines(state: JsonObject) -> Iterator[str]:
    """Yield where an operation stands, why it waits, what was decided in the end, and what went wrong."""
    progress = state.get("progress")
    how_far = f" {progress['done']}/{progress['total']} {progress['unit']}" if progress else ""
    yield f"{state['id']} {state['state']} {state.get('phase') or ''}{how_far}".rstrip()
    if state.get("detail"):
        yield f"  {state['detail']}"
    if state.get("phase") is None:  # it is over
        yield from (f"  {sentence}" for sentence in (state.get("decision") or {}).get("explanation", ()))
    error = state.get("error")
    if error:
        yield f"  {error['code']}: {error['detail']}"
        yield from (f"  {name}: {error[name]}" for name in ("hint", "kept") if error.get(name))


def presence_line(device: str, presence: JsonObject) -> str:
    """Return whether a device is there, and since when or why not."""
    if presence["state"] == "online":
        return f"{device} is online, nibbled {presence['agent']}, connected since {presence['at']}"
    when = f" since {presence['at']}" if presence.get("at") else ""
    return f"{device} is offline{when}: {presence.get('reason') or 'it was cut off'}"


def status_lines(device: str, told: Mapping[str, JsonObject]) -> Iterator[str]:
    """Yield what a device serves and can do; ``told`` has its ``presence``, ``reported`` and ``capabilities``."""
    reported = told["reported"]
    yield presence_line(device, told["presence"])
    for name, model in sorted(reported["models"].items()):
        yield _model(name, model)
        if model.get("previous"):
            yield f"  rollback goes to {_release(model['previous'])}"
    if not reported["models"]:
        yield "no model is served"
    memory = reported["memory"]
    if memory.get("room_bytes") is not None:
        yield f"memory for models: {size(memory['room_bytes'])} of {size(memory['total_bytes'])} ({memory['source']})"
    if not reported["trust"].get("require_signature", True):
        yield "trust.require_signature is off: anybody on the broker may deploy"
    if reported["config"]:
        yield f"changed by set-config: {json.dumps(reported['config'])}"
    if reported.get("generation") is not None:
        yield f"desired generation: {reported['generation']}"
    methods = told["capabilities"]["methods"]
    yield f"methods that work: {', '.join(name for name, found in methods.items() if found['ok']) or 'none'}"
    yield from (f"  {name} does not: {found['detail']}" for name, found in methods.items() if not found["ok"])
    yield f"as of {reported['at']}; everything that it said: --json"


def _model(name: str, model: JsonObject) -> str:
    agreement = model.get("agreement")
    agrees = f", {agreement:.1%} of its answers are the source's" if agreement is not None else ""
    resident = model.get("resident_bytes")
    takes = f", {size(resident)}" if resident is not None else ""
    return f"{name} {_release(model)}: {model['state']} since {model.get('since') or 'an unknown time'}{takes}{agrees}"


def _release(release: JsonObject) -> str:
    return f"{release['version']} as {release['method']}"
