"""What became of a rollout: one JSON object, and lines of text. Pure: from the journal's history."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from agent.contract.wire import rfc3339
from agent.fleet.rollout.state import Outcome, Stage, Undo, tallies
from agent.fleet.rollout.timeline import awaited, changes, is_told
from agent.fleet.rows import number_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from agent.fleet.rollout.plan import Plan
    from agent.fleet.rollout.state import Device, Rollout
    from agent.fleet.rollout.timeline import Entry

JsonObject = dict[str, Any]


def build(plan: Plan, history: Iterable[tuple[float, Rollout]]) -> JsonObject:
    """Return the report.

    Args:
        plan: the plan.
        history: the rollout after each event, and when in seconds since 1970; not empty.
    """
    steps = iter(history)
    begin, rollout = next(steps)
    last, before = begin, rollout
    entries: list[Entry] = []
    for last, rollout in steps:
        entries += changes(plan, before, rollout, last)
        before = rollout
    needless = {name for name, device in rollout.devices.items() if device.undo is Undo.NOT_NEEDED}
    entries = [entry for entry in entries if is_told(entry, needless)]
    return {
        "schema": 1,
        "rollout": plan.id,
        "command": plan.command.name,
        "model": plan.command.model,
        "status": str(rollout.status),
        "reason": rollout.reason,
        "opens": None if rollout.opens is None else moment(rollout.opens),
        "waits": next((entry.text for entry in awaited(plan, rollout, last)), None),
        "begun": moment(begin),
        "last": moment(last),
        "waves": [*_waves(plan, rollout, entries)],
        "devices": [*_devices(plan, rollout, entries)],
        "timeline": [{**entry.body(), "at": moment(entry.at), "text": entry.text} for entry in entries],
    }


def lines(report: JsonObject) -> Iterator[str]:
    """Yield the report as text: the waves, and each device of which more is to be said than that it succeeded."""
    about = f" of {report['model']}" if report["model"] else ""
    yield f"rollout {report['rollout']} ({report['command']}{about}) is {report['status']}"
    if report["reason"]:
        yield f"  {report['reason']}"
    if report["waits"]:
        yield f"  {report['waits']}"
    yield f"  from {report['begun']} to {report['last']}"
    for wave in report["waves"]:
        yield f"wave {wave['name']}: {counted(wave)}"
    for device in report["devices"]:
        if device["outcome"] not in (None, str(Outcome.SUCCEEDED)) or device["undo"]:
            yield f"{device['device']} ({device['wave']}): {told(device)}"


def counted(wave: Mapping[str, Any]) -> str:
    """Return a wave's numbers in words."""
    numbers = (
        (wave[name], name.replace("_", " ")) for name in ("succeeded", "failed", "skipped", "in_flight", "pending")
    )
    return f"{number_of(wave['total'], 'device')}, " + (
        ", ".join(f"{n} {name}" for n, name in numbers if n) or "nothing yet"
    )


def told(device: Mapping[str, Any]) -> str:
    """Return in words what became of a device."""
    what = (device["outcome"] or device["stage"]).replace("_", " ")
    text = f"{what}: {device['detail']}" if device["detail"] else what
    if device["undo"]:
        text += f"; taking back: {device['undo'].replace('_', ' ')}"
        text += f": {device['undo_detail']}" if device["undo_detail"] else ""
    return text


def moment(at: float) -> str:
    """Return seconds since 1970 as RFC 3339."""
    return rfc3339(datetime.fromtimestamp(at, timezone.utc))


def _waves(plan: Plan, rollout: Rollout, entries: Sequence[Entry]) -> Iterator[JsonObject]:
    begun = {entry.wave: entry.at for entry in entries if entry.event == "wave_begun"}
    complete = {entry.wave: entry.at for entry in entries if entry.event == "wave_complete"}
    for index, (wave, count) in enumerate(zip(plan.waves, tallies(plan, rollout), strict=True)):
        members = [*rollout.of_wave(index)]
        yield {
            "name": wave.name,
            "total": count.total,
            "succeeded": count.succeeded,
            "failed": count.failed,
            "skipped": count.skipped,
            "in_flight": sum(device.stage is Stage.STARTED for device in members),
            "pending": sum(device.is_pending for device in members),
            "begun": moment(begun[wave.name]) if wave.name in begun else None,
            "complete": moment(complete[wave.name]) if wave.name in complete else None,
        }


def _devices(plan: Plan, rollout: Rollout, entries: Sequence[Entry]) -> Iterator[JsonObject]:
    started = {entry.device: entry.at for entry in reversed(entries) if entry.event == f"device_{Stage.STARTED}"}
    for name, device in rollout.devices.items():
        begin, end = started.get(name), device.since if device.stage is Stage.SETTLED else None
        yield {
            "device": name,
            "wave": plan.waves[device.wave].name,
            "stage": str(device.stage),
            "outcome": _text(device.outcome),
            "operation": device.operation,
            "detail": device.detail if device.outcome is not Outcome.SUCCEEDED else None,
            "began": None if begin is None else moment(begin),
            "ended": None if end is None else moment(end),
            "took_s": None if begin is None or end is None else round(end - begin, 1),
            **_undo(device),
        }


def _undo(device: Device) -> JsonObject:
    return {"undo": _text(device.undo), "undo_detail": device.undo_detail}


def _text(value: object) -> str | None:
    return None if value is None else str(value)
