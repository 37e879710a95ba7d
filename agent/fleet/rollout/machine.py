"""The pure machine of a rollout: ``advance(plan, rollout, event, now) -> (rollout, sends)``.

INVARIANTS:
- never more devices in flight than the plan allows;
- from the moment that more have failed than may, no device is begun with; those in flight are all that is touched;
- only ``succeeded`` counts as success: the operation's own word, said after its trial;
- the end is final, and a device's outcome never gets better;
- the same plan and events give the same rollout, so that a journal of events is the whole state; and what devices
  retain at the broker gives the same decisions without it.

The last one is why the share of failures is taken of the devices that were begun with, not of those that have finished:
after the decision nobody is begun with, so that the share can only grow, and whoever counts later decides the same.

It sends nothing, reads no clock (``now`` is seconds since 1970) and knows no broker.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from agent.deployment.phases import State
from agent.fleet.rollout.events import Asked, Heard, NotNeeded, Present, Purpose, Refused, Send, Serves
from agent.fleet.rollout.state import Device, Outcome, Rollout, Stage, Status, Tally, Undo, tallies
from agent.fleet.rollout.windows import is_open, next_opening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.fleet.rollout.events import Event, Sends, Told, Word
    from agent.fleet.rollout.plan import Plan, Then


def advance(plan: Plan, rollout: Rollout, event: Event, now: float) -> tuple[Rollout, Sends]:
    """Return the rollout after ``event``, and what to send once that is persisted.

    Args:
        plan: the plan.
        rollout: as it stands.
        event: what happened.
        now: seconds since 1970, not before those of the event before.
    """
    if rollout.status.is_over:
        return rollout, ()
    if isinstance(event, Refused):
        return _refused(rollout, event), ()
    was_aborting = rollout.status is Status.ABORTING
    if isinstance(event, Heard):
        for asked in event.asked:
            rollout = _asked(plan, rollout, asked)
        rollout = _heard(rollout, event, now)
    elif isinstance(event, Asked):
        rollout = _asked(plan, rollout, event)
    rollout, sends = _out_of_time(plan, rollout, now)
    counts = tallies(plan, rollout)
    rollout = _judged(plan, rollout, counts)
    if rollout.status is Status.ABORTING:
        sends += () if was_aborting else _canceled(plan, rollout)
        rollout, more = _back(plan, _awaiting(plan, rollout, now), now)
        return rollout, sends + more
    if rollout.status is Status.RUNNING:
        rollout = _next_wave(plan, rollout, counts, now)
        rollout, more = _begun(plan, rollout, now)
        sends += more
    return _awaiting(plan, rollout, now), sends


def unanswered(plan: Plan, rollout: Rollout) -> Sends:
    """Return what was sent and never answered: after a restart nobody knows whether it left; ids make it run once."""
    if rollout.status.is_over:
        return ()
    devices = rollout.devices.items()
    undone = tuple(
        Send(name, Purpose.UNDO) for name, device in devices if device.undo is Undo.SENT and not device.undo_operation
    )
    if rollout.status is Status.ABORTING:
        return undone + _canceled(plan, rollout)
    started = (name for name, device in devices if device.stage is Stage.STARTED and not device.operation)
    return undone + tuple(Send(name, Purpose.DO) for name in started)


def _canceled(plan: Plan, rollout: Rollout) -> Sends:
    if plan.on_abort.in_flight == "finish":
        return ()
    return tuple(
        Send(name, Purpose.CANCEL) for name, device in rollout.devices.items() if device.stage is Stage.STARTED
    )


def _heard(rollout: Rollout, event: Heard, now: float) -> Rollout:
    devices = dict(rollout.devices)
    found: set[str] = set()
    for word in sorted(event.words, key=_is_verdict):  # one that was taken back also serves something else
        before = devices.get(word.device)
        if before is not None:
            after = devices[word.device] = _after(before, word, now)
            if before.is_pending and not after.is_pending:
                found.add(word.device)
    return _taken_over(replace(rollout, devices=devices), found)


def _is_verdict(word: Word) -> bool:
    return isinstance(word, Serves) and word.is_since


def _taken_over(rollout: Rollout, found: set[str]) -> Rollout:
    """Take up what was begun by an operator of whom no journal is left: with ``found``, so with all before them."""
    if found:
        wave = max(rollout.devices[device].wave for device in found)
        if wave > rollout.wave:
            rollout = replace(rollout, wave=wave, complete_since=None)
        last = max(position for position, device in enumerate(rollout.devices, 1) if device in found)
        rollout = replace(rollout, frontier=max(rollout.frontier, last))
    is_going_back = any(device.undo is not None for device in rollout.devices.values())
    if is_going_back and rollout.status is not Status.ABORTING:
        return replace(rollout, status=Status.ABORTING, reason="devices are being taken back already")
    return rollout


def _after(device: Device, word: Word, now: float) -> Device:
    if isinstance(word, Present):
        return replace(device, is_online=word.is_online)
    if isinstance(word, Serves):
        return _serving(device, word)
    if isinstance(word, NotNeeded):
        is_open = device.undo is not None and not device.undo.is_over
        return replace(device, undo=Undo.NOT_NEEDED, undo_detail=word.why) if is_open else device
    if word.purpose is Purpose.UNDO:
        return _undone(device, word, now)
    return _told(device, word, now)


def _told(device: Device, word: Told, now: float) -> Device:
    """Take the state of the operation. What has settled stays, but a change that comes late is known, to be undone."""
    if device.operation is not None and State(device.operation).is_terminal:
        return device
    told = replace(device, operation=word.state, detail=word.detail, was_sent=True)
    if told.is_pending:
        told = replace(told, stage=Stage.STARTED, since=now)
    if not State(word.state).is_terminal or told.stage is Stage.SETTLED:
        return told
    outcome = Outcome.SUCCEEDED if word.state == State.SUCCEEDED else Outcome.FAILED
    return replace(told, stage=Stage.SETTLED, since=now, outcome=outcome)


def _serving(device: Device, word: Serves) -> Device:
    if word.is_ours:
        return device if device.serves else replace(device, serves=True)
    was_ours = device.serves or word.is_since
    if was_ours and device.outcome is Outcome.SUCCEEDED and device.undo is None:
        return replace(device, outcome=Outcome.REGRESSED, detail="it serves something else by now")
    return device


def _undone(device: Device, word: Told, now: float) -> Device:
    if device.undo is not None and device.undo.is_over:
        return device
    device = replace(device, undo_operation=word.state, undo_detail=word.detail)
    if not State(word.state).is_terminal:
        return device if device.undo is Undo.SENT else replace(device, undo=Undo.SENT, undo_since=now)
    undo = Undo.DONE if word.state == State.SUCCEEDED else Undo.FAILED
    return replace(device, undo=undo, undo_since=now)


def _refused(rollout: Rollout, event: Refused) -> Rollout:
    """Put back who was not sent anything, so that no time runs for them. Whoever goes on decides anew."""
    devices = rollout.devices
    back: dict[str, Device] = {}
    for name, purpose in ((send.device, send.purpose) for send in event.sends):
        device = devices[name]
        if purpose is Purpose.DO and device.stage is Stage.STARTED and device.operation is None:
            back[name] = replace(device, stage=Stage.WAITING, since=0.0, was_sent=False)
        elif purpose is Purpose.UNDO and device.undo is Undo.SENT and device.undo_operation is None:
            back[name] = replace(device, undo=None, undo_since=0.0)
    return _with(rollout, back)


def _asked(plan: Plan, rollout: Rollout, event: Asked) -> Rollout:
    if event.what == "approve" and event.wave is not None:
        return replace(rollout, approved=rollout.approved | {event.wave})
    if event.what == "abort":
        return replace(rollout, status=Status.ABORTING, reason="a person aborted it")
    if event.what == "pause" and rollout.status is Status.RUNNING:
        return replace(rollout, status=Status.PAUSED, reason="a person paused it")
    if event.what == "resume" and rollout.status is Status.PAUSED:
        return _gone_on(plan, rollout)
    return rollout


def _gone_on(plan: Plan, rollout: Rollout) -> Rollout:
    """Go on from a pause; what it was for is known now and does not count again."""
    forgiven, accepted = dict(rollout.forgiven), set(rollout.accepted)
    for wave, count in enumerate(tallies(plan, rollout)[: rollout.wave + 1]):
        if _has_failed(plan, rollout, wave, count):
            forgiven[wave] = count.failed
        if count.open == 0 and not _has_succeeded(plan, wave, count):
            accepted.add(wave)
    return replace(rollout, status=Status.RUNNING, reason=None, forgiven=forgiven, accepted=frozenset(accepted))


def _out_of_time(plan: Plan, rollout: Rollout, now: float) -> tuple[Rollout, Sends]:
    """Settle those whose time is over. A device that is away has time only while devices are begun with at all."""
    waits = rollout.status is Status.RUNNING and is_open(plan.windows, now)
    stages = (Stage.STARTED, Stage.AWAY) if waits else (Stage.STARTED,)
    late = {
        name: _late(plan, device, now)
        for name, device in rollout.devices.items()
        if device.stage in stages
        and now - device.since >= plan.pace.timeout_s
        and not (device.stage is Stage.AWAY and device.is_online)
    }
    sends = tuple(Send(name, Purpose.CANCEL) for name in late if rollout.devices[name].stage is Stage.STARTED)
    return _with(rollout, late), sends


def _late(plan: Plan, device: Device, now: float) -> Device:
    if device.operation is None and not device.is_online:
        outcome = Outcome.OFFLINE if plan.pace.offline == "fail" else Outcome.SKIPPED
        return replace(device, stage=Stage.SETTLED, since=now, outcome=outcome)
    return replace(device, stage=Stage.SETTLED, since=now, outcome=Outcome.TIMED_OUT)


def _judged(plan: Plan, rollout: Rollout, counts: list[Tally]) -> Rollout:
    """Pause or abort where more has failed than may, or a wave is through and too little of it has succeeded."""
    if rollout.status not in (Status.RUNNING, Status.PAUSED):
        return rollout
    for wave, count in enumerate(counts[: rollout.wave + 1]):
        errors, success = plan.errors_of(wave), plan.success_of(wave)
        if _has_failed(plan, rollout, wave, count):
            why = f"{count.failed} of {count.touched} devices failed, {errors.percent:g} % may"
            rollout = _stopped(rollout, errors.then, f"wave {plan.waves[wave].name}: {why}")
        elif count.open == 0 and wave not in rollout.accepted and not _has_succeeded(plan, wave, count):
            why = f"{count.succeeded} of {count.total - count.skipped} devices succeeded, {success.percent:g} % have to"
            rollout = _stopped(rollout, success.then, f"wave {plan.waves[wave].name}: {why}")
    return rollout


def _has_failed(plan: Plan, rollout: Rollout, wave: int, count: Tally) -> bool:
    errors, failed = plan.errors_of(wave), count.failed - rollout.forgiven.get(wave, 0)
    return failed > 0 and count.finished >= errors.min_devices and failed * 100 > errors.percent * count.touched


def _stopped(rollout: Rollout, then: Then, why: str) -> Rollout:
    if then == "abort":
        return rollout if rollout.status is Status.ABORTING else replace(rollout, status=Status.ABORTING, reason=why)
    return replace(rollout, status=Status.PAUSED, reason=why) if rollout.status is Status.RUNNING else rollout


def _has_succeeded(plan: Plan, wave: int, count: Tally) -> bool:
    return count.succeeded * 100 >= plan.success_of(wave).percent * (count.total - count.skipped)


def _next_wave(plan: Plan, rollout: Rollout, counts: list[Tally], now: float) -> Rollout:
    """Begin the next wave when its time has come, or end with the last one."""
    while True:
        wave = rollout.wave
        if wave >= 0:
            count = counts[wave]
            is_accepted = count.open == 0 and wave in rollout.accepted
            if not _has_succeeded(plan, wave, count) and not is_accepted:
                return replace(rollout, complete_since=None)
            since = now if rollout.complete_since is None else rollout.complete_since
            rollout = replace(rollout, complete_since=since)
            if now < since + (plan.soak_of(wave) if count.total else 0.0):
                return rollout
        if wave + 1 == len(plan.waves):
            is_through = all(device.stage is Stage.SETTLED for device in rollout.devices.values())
            return replace(rollout, status=Status.FINISHED) if is_through else rollout
        if needs_approval(plan, rollout):
            return rollout
        rollout = replace(rollout, wave=wave + 1, complete_since=None)


def needs_approval(plan: Plan, rollout: Rollout) -> bool:
    """Return whether a person has to agree to the next wave before it can begin."""
    after = rollout.wave + 1
    return after < len(plan.waves) and plan.waves[after].approval and after not in rollout.approved


def is_asking(plan: Plan, rollout: Rollout, now: float) -> bool:
    """Return whether nothing but a person's agreement keeps the next wave from its beginning."""
    if rollout.status is not Status.RUNNING or not needs_approval(plan, rollout):
        return False
    if rollout.wave < 0:
        return True
    return rollout.complete_since is not None and now >= rollout.complete_since + plan.soak_of(rollout.wave)


def _begun(plan: Plan, rollout: Rollout, now: float) -> tuple[Rollout, Sends]:
    """Send the command to as many devices as may be in flight; whose turn comes while it is offline is waited for."""
    if rollout.status is not Status.RUNNING or rollout.wave < 0 or not is_open(plan.windows, now):
        return rollout, ()
    slots = plan.in_flight_of(rollout.wave) - rollout.in_flight
    ahead = islice(rollout.devices.values(), rollout.frontier)
    is_held = any(device.stage is not Stage.SETTLED and device.operation is None for device in ahead)
    begun: dict[str, Device] = {}
    for position, (name, device) in enumerate(rollout.devices.items()):
        if device.wave > rollout.wave or (is_held and position >= rollout.frontier):
            break
        if device.is_pending and device.is_online:
            if slots <= 0:
                break
            slots -= 1
            begun[name] = replace(device, stage=Stage.STARTED, since=now, was_sent=True)
        elif device.stage is Stage.WAITING:
            begun[name] = replace(device, stage=Stage.AWAY, since=now)
    sends = tuple(Send(name, Purpose.DO) for name, device in begun.items() if device.stage is Stage.STARTED)
    return _with(rollout, begun), sends


def _awaiting(plan: Plan, rollout: Rollout, now: float) -> Rollout:
    """Say which window those wait for whose turn has come; for each wait the same one."""
    opens = None
    if rollout.status is Status.RUNNING and not is_open(plan.windows, now):
        waits = any(device.is_pending and device.wave <= rollout.wave for device in rollout.devices.values())
        is_known = rollout.opens is not None and now < rollout.opens
        opens = (rollout.opens if is_known else next_opening(plan.windows, now)) if waits else None
    return rollout if opens == rollout.opens else replace(rollout, opens=opens)


def _back(plan: Plan, rollout: Rollout, now: float) -> tuple[Rollout, Sends]:
    """Cancel what is in flight, take back what was changed, and end when nothing of that is left to do."""
    changed: dict[str, Device] = {}
    sends: list[Send] = []
    slots = plan.pace.max_in_flight - rollout.in_flight
    for name, device in rollout.devices.items():
        after = device
        if plan.on_abort.rollback and device.operation == State.SUCCEEDED and device.undo is None:
            after = replace(device, undo=Undo.WANTED, undo_since=now)
        if after.undo in (Undo.WANTED, Undo.SENT) and now - after.undo_since >= plan.pace.timeout_s:
            why = "no end in time" if after.undo is Undo.SENT or after.is_online else "offline"
            after = replace(after, undo=Undo.FAILED, undo_since=now, undo_detail=why)
        elif after.undo is Undo.WANTED and after.is_online and slots > 0:
            slots -= 1
            after = replace(after, undo=Undo.SENT, undo_since=now)
            sends.append(Send(name, Purpose.UNDO))
        if after is not device:
            changed[name] = after
    rollout = _with(rollout, changed)
    is_through = all(
        device.stage is not Stage.STARTED and (device.undo is None or device.undo.is_over)
        for device in rollout.devices.values()
    )
    return (replace(rollout, status=Status.ABORTED) if is_through else rollout), tuple(sends)


def _with(rollout: Rollout, changed: Mapping[str, Device]) -> Rollout:
    return replace(rollout, devices={**rollout.devices, **changed}) if changed else rollout
