"""What happened in a rollout, as entries for people and programs. Pure: from two states to what lies between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.fleet.rollout.state import Stage, Status, Undo
from agent.fleet.rollout.windows import opening
from agent.fleet.rows import number_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from agent.fleet.rollout.plan import Plan
    from agent.fleet.rollout.state import Device, Rollout


@dataclass(frozen=True)
class Entry:
    """One thing that happened.

    Attributes:
        at: seconds since 1970.
        event: ``wave_begun``, ``wave_complete``, ``device_<stage or outcome>``, ``undo_<how far>``,
            ``undo_refused`` or ``rollout_<status>``. ``device_waiting``: the broker refused the command.
            ``window_awaited``: devices whose turn has come wait for a window.
        text: a sentence.
        wave, device: of which, None for the rollout as a whole.
        detail: why, None where that says nothing.
    """

    at: float
    event: str
    text: str
    wave: str | None = None
    device: str | None = None
    detail: str | None = None

    def body(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        names = ("at", "event", "wave", "device", "detail")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def changes(plan: Plan, before: Rollout, after: Rollout, at: float) -> Iterator[Entry]:
    """Yield what happened between two states of a rollout."""
    for index in range(before.wave + 1, after.wave + 1):
        wave = plan.waves[index].name
        total = sum(1 for _ in after.of_wave(index))
        yield Entry(at, "wave_begun", f"wave {wave} begins: {number_of(total, 'device')}", wave)
    changed = [
        (name, before.devices[name], device)
        for name, device in after.devices.items()
        if name in before.devices and before.devices[name] is not device
    ]
    for name, was, device in changed:
        yield from _of_device(plan, name, was, device, at)
    if after.wave >= 0 and after.complete_since is not None:
        wave = plan.waves[after.wave].name
        if before.complete_since is None or before.wave != after.wave:
            yield Entry(at, "wave_complete", f"wave {wave} has succeeded, soak {plan.soak_of(after.wave):g} s", wave)
    reason = f": {after.reason}" if after.reason else ""
    told = Entry(at, f"rollout_{after.status}", f"rollout {plan.id} {_words(after)}{reason}", detail=after.reason)
    is_new = after.status is not before.status
    if is_new and not after.status.is_over:
        yield told
    for name, was, device in changed:
        yield from _of_undo(plan, name, was, device, at)
    if after.opens is not None and after.opens != before.opens:
        yield from awaited(plan, after, at)
    if is_new and after.status.is_over:
        yield told


def is_told(entry: Entry, needless: Collection[str]) -> bool:
    """Return whether an entry is true: to take back what turns out to be ``needless`` is decided and not sent."""
    return entry.event != f"undo_{Undo.SENT}" or entry.device not in needless


def awaited(plan: Plan, rollout: Rollout, at: float) -> Iterator[Entry]:
    """Yield what a rollout waits for that no person and no device does anything about."""
    if rollout.opens is not None:
        opens = f"opens {opening(plan.windows, rollout.opens)}"
        yield Entry(at, "window_awaited", f"rollout {plan.id} waits for the window, {opens}", detail=opens)


def _of_device(plan: Plan, name: str, before: Device, after: Device, at: float) -> Iterator[Entry]:
    wave = plan.waves[after.wave].name
    if after.stage is Stage.WAITING and before.stage is Stage.STARTED:
        yield Entry(at, f"device_{Stage.WAITING}", f"{name} was not sent it: the broker refuses", wave, name)
    elif (after.stage, after.outcome) != (before.stage, before.outcome):
        what = after.outcome if after.outcome is not None else after.stage
        why = after.detail if after.outcome is not None and after.outcome.is_failure else None
        if before.is_pending and after.stage is Stage.SETTLED and after.was_sent:
            yield Entry(at, f"device_{Stage.STARTED}", f"{name} {Stage.STARTED}", wave, name)
        yield Entry(at, f"device_{what}", f"{name} {_spaced(what)}{f': {why}' if why else ''}", wave, name, why)


def _of_undo(plan: Plan, name: str, before: Device, after: Device, at: float) -> Iterator[Entry]:
    wave = plan.waves[after.wave].name
    if after.undo is None and before.undo is not None:
        yield Entry(at, "undo_refused", f"{name} taking back: the broker refuses", wave, name)
    elif after.undo is not before.undo and after.undo is not None:
        why = after.undo_detail
        text = f"{name} taking back: {_spaced(after.undo)}{f': {why}' if why else ''}"
        yield Entry(at, f"undo_{after.undo}", text, wave, name, why)


def _words(rollout: Rollout) -> str:
    return {Status.RUNNING: "goes on", Status.PAUSED: "is paused", Status.ABORTING: "aborts"}.get(
        rollout.status, f"is {rollout.status}"
    )


def _spaced(what: object) -> str:
    return str(what).replace("_", " ")
