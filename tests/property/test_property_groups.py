"""Who joins a rollout, and that the order in which messages come does not decide it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, cast

from hypothesis import given
from hypothesis import strategies as st

from agent.contract.desired import Desired, DesiredMessage, HaltMessage
from agent.contract.halt import Halt, Halts
from agent.contract.staged import Rollout, position
from agent.deployment.groups import Groups
from agent.deployment.hearing import Hearing
from agent.deployment.joining import Standing, standing
from tests.fakes.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.contract.desired import RetainedMessage

START = datetime(2026, 11, 23, 10, 40, tzinfo=timezone.utc)
ids = st.text("abcxyz-_019", min_size=1, max_size=20)
percents = st.floats(0, 100, allow_nan=False)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    shares = sorted(draw(st.lists(percents, min_size=1, max_size=5)))
    times = sorted(draw(st.lists(st.integers(0, 10_000), min_size=len(shares), max_size=len(shares))))
    stages = [{"percent": share, "after_s": at} for share, at in zip(shares, times, strict=True)]
    spread = draw(st.sampled_from([0, 600]))
    return Rollout.model_validate({"id": draw(ids), "start": START, "stages": stages, "spread_s": spread})


@given(ids, ids, percents, percents)
def test_who_is_in_at_a_percentage_is_in_at_every_higher_one(
    rollout: str, device: str, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert 0 <= position(rollout, device) < 100
    within = [Rollout(id=rollout, percent=percent).turn(device).percent is not None for percent in (low, high)]
    assert within in ([False, False], [False, True], [True, True])


@given(rollouts(), ids, st.lists(st.integers(-100, 20_000), min_size=2, max_size=6))
def test_once_in_always_in(rollout: Rollout, device: str, seconds: list[int]) -> None:
    document = Desired(generation=1, rollout=rollout)
    times = [START + timedelta(seconds=each) for each in sorted(seconds)]
    states = [standing(document, None, device, now, has_heard=True) for now in times]
    joined = [state is Standing.JOINED for state in states]
    assert joined == sorted(joined)
    for now, state in zip(times, states, strict=True):
        if state is Standing.JOINED:
            assert position(rollout.id, device) < (rollout.percent_at(now) or 0)
        assert standing(document, Halt(), device, now, has_heard=True) is Standing.HALTED
        assert standing(document, None, device, now, has_heard=False) is not Standing.JOINED


@given(st.integers(2, 98))
def test_a_percentage_is_about_as_many_of_the_devices(percent: int) -> None:
    devices = [f"box-{number}" for number in range(2000)]
    inside = sum(position("fleet", device) < percent for device in devices)
    assert abs(inside / len(devices) - percent / 100) < 0.05


class Memory:
    """What `Groups` needs of a journal, without a disk."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.halted: dict[str, Any] = {}

    def waiting(self) -> dict[str, Any]:
        return dict(self.kept)

    def halts(self) -> dict[str, Any]:
        return dict(self.halted)

    def defer(self, group: str, document: Any, _reports: Any) -> None:
        self.kept[group] = document

    def halt(self, group: str, halts: Any, _reports: Any) -> None:
        self.halted.pop(group, None)
        if halts is not None:
            self.halted[group] = halts


class Silent:
    """Words nothing."""

    def event(self, _name: str, **_details: Any) -> None:
        return None


class Trusting:
    """Takes every signature for a trusted key's."""

    def check_halt(self, *_arguments: Any) -> None:
        return None


class Device:
    """The groups of a device that has heard everything when it is told so."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        hearing: Any = Hearing(lambda: 1, 0.0)
        parts: dict[str, Any] = {"signed": Trusting(), "clock": FakeClock(), "hearing": hearing}
        journal, reporting = cast("Any", memory), cast("Any", Silent())
        self.groups = Groups(["lab"], "box-1", journal, reporting, **parts)

    def hear(self, message: RetainedMessage) -> None:
        if isinstance(message, HaltMessage):
            self.groups.heed(message)
            return
        self.groups.noticed(message)
        document = Desired.model_validate(json.loads(message.payload))
        known = self.groups.waiting.get("lab")
        if known is None or document.generation > known.generation:
            self.groups.defer("lab", document)

    def outcome(self) -> Any:
        self.groups.echoed(1)
        self.groups.look()
        return self.groups.ready(), self.groups.facts({}, []), self.memory.waiting(), self.memory.halts()


def document(generation: int) -> DesiredMessage:
    body = {"schema": 1, "generation": generation, "models": {}}
    return DesiredMessage("lab", json.dumps(body).encode(), is_replayed=True, connection=1)


def halt(generation: int | None, *, is_signed: bool) -> HaltMessage:
    envelope = {"payloadType": "t", "payload": "", "signatures": [{"sig": ""}]}
    body = {"schema": 1, "generation": generation, "reason": "stop", "signature": envelope if is_signed else None}
    return HaltMessage("lab", json.dumps(body).encode(), is_replayed=True, connection=1)


halts = st.builds(halt, st.none() | st.integers(0, 5), is_signed=st.booleans())


@given(st.lists(st.integers(0, 5).map(document), min_size=1, max_size=4), st.none() | halts, st.data())
def test_the_order_of_messages_does_not_matter_before_everything_was_heard(
    documents: Sequence[DesiredMessage], stop: HaltMessage | None, data: st.DataObject
) -> None:
    messages = [*documents, *([stop] if stop is not None else [])]
    outcomes = []
    for _ in range(2):
        device = Device(Memory())
        for message in data.draw(st.permutations(messages)):
            device.hear(message)
            assert device.groups.ready() is None, "nothing is followed before everything was heard"
            if data.draw(st.booleans()):
                device = Device(device.memory)  # a restart, after which the broker tells it all again
                for again in messages:
                    device.hear(again)
        outcomes.append(device.outcome())
    assert outcomes[0] == outcomes[1]
    ready, *_ = outcomes[0]
    newest = max(json.loads(each.payload)["generation"] for each in documents)
    until = None if stop is None else json.loads(stop.payload)["generation"]
    is_stopped = stop is not None and (until is None or newest <= until)
    assert (ready is None) == is_stopped


plain = st.none() | st.builds(Halt, generation=st.none() | st.integers(0, 5))
vouched = st.builds(Halt, generation=st.none() | st.integers(0, 5))


@given(st.lists(st.tuples(plain, st.just(value=False)) | st.tuples(vouched, st.just(value=True)), max_size=8))
def test_what_nobody_signed_never_takes_back_what_somebody_did(steps: list[tuple[Halt | None, bool]]) -> None:
    found, highest = Halts(), -1
    for halt_, is_signed in steps:
        found = found.after(halt_, is_signed=is_signed)
        if is_signed and halt_ is not None and halt_.generation is not None:
            highest = max(highest, halt_.generation)
        assert all(found.covering(generation) is not None for generation in range(highest + 1))
    assert found.after(None, is_signed=False).covering(highest + 1) is None
