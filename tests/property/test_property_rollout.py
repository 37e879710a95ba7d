"""Rollouts over every mix of devices and every order of their answers, with an operator that dies at any point."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hypothesis import given
from hypothesis import strategies as st

from agent.fleet.rollout.events import Asked, Heard, Present, Purpose, Refused, Send, Ticked, Told
from agent.fleet.rollout.machine import advance, unanswered
from agent.fleet.rollout.membership import Known, members
from agent.fleet.rollout.plan import Command, Errors, OnAbort, Pace, Plan, Success, Wave
from agent.fleet.rollout.state import Outcome, Rollout, Stage, Status, Undo, begin, tallies

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from agent.fleet.rollout.events import Event, Word

Manner = Literal["good", "bad", "hangs", "away"]
TIMEOUT_S = 600.0
STEP_S = 50.0
MAX_STEPS = 600
ENDS = {"good": "succeeded", "bad": "rolled_back"}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    first, second = draw(st.integers(1, 40)), draw(st.integers(41, 99))
    return Plan(
        format=1,
        id="r1",
        command=Command(name="deploy", model="kanji"),
        waves=tuple(Wave(name=f"w{share}", percent=share) for share in (first, second, 100)),
        pace=Pace(
            max_in_flight=draw(st.integers(1, 6)),
            timeout_s=TIMEOUT_S,
            soak_s=draw(st.sampled_from([0.0, 120.0])),
            offline=draw(st.sampled_from(["fail", "skip"])),
        ),
        success=Success(
            percent=draw(st.sampled_from([0, 50, 90, 100])), then=draw(st.sampled_from(["pause", "abort"]))
        ),
        errors=Errors(
            percent=draw(st.sampled_from([0, 10, 30, 60])),
            min_devices=draw(st.integers(1, 6)),
            then=draw(st.sampled_from(["pause", "abort"])),
        ),
        on_abort=OnAbort(
            in_flight=draw(st.sampled_from(["cancel", "finish"])),
            rollback=draw(st.booleans()),
        ),
    )


def fleets(*manners: Manner) -> st.SearchStrategy[dict[str, Manner]]:
    some = st.lists(st.sampled_from(manners), min_size=1, max_size=24)
    return some.map(lambda chosen: {f"box-{number}": manner for number, manner in enumerate(chosen)})


ANY = fleets("good", "good", "good", "bad", "hangs", "away")
ANSWERING = fleets("good", "good", "good", "bad")
answers = st.lists(st.integers(0, 1000), max_size=60)


@dataclass
class World:
    """The devices, and what the broker retains of them; outlives every operator.

    Attributes:
        manners: what becomes of the command on each device.
        told: the last state of each operation, by device and purpose.
        received: the devices that got the command, each once, in that order.
        open: operations that have no end yet.
    """

    manners: Mapping[str, Manner]
    told: dict[tuple[str, Purpose], str] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    open: list[tuple[str, Purpose]] = field(default_factory=list)

    def take(self, send: Send) -> None:
        key = (send.device, send.purpose)
        if send.purpose is Purpose.CANCEL:
            self._cancel(send.device)
        elif key not in self.told:
            self.told[key] = "accepted"
            self.open.append(key)
            if send.purpose is Purpose.DO:
                self.received.append(send.device)

    def finish(self, choice: int) -> Told | None:
        """End one of the open operations that end at all."""
        ending = [key for key in self.open if key[1] is Purpose.UNDO or self.manners[key[0]] in ENDS]
        if not ending:
            return None
        device, purpose = key = ending[choice % len(ending)]
        return self._end(key, "succeeded" if purpose is Purpose.UNDO else ENDS[self.manners[device]])

    def retained(self) -> list[Word]:
        present: list[Word] = [Present(device, manner != "away") for device, manner in self.manners.items()]
        return [*present, *(Told(device, purpose, state) for (device, purpose), state in self.told.items())]

    def _cancel(self, device: str) -> None:
        if (device, Purpose.DO) in self.open:
            self._end((device, Purpose.DO), "canceled")

    def _end(self, key: tuple[str, Purpose], state: str) -> Told:
        self.open.remove(key)
        self.told[key] = state
        return Told(*key, state)


class Operator:
    """Advances a rollout and keeps the journal; checks at every step what must always hold."""

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan = plan
        self.world = world
        self.now = 0.0
        self.journal: list[tuple[Event, float]] = []
        found = members(plan, dict.fromkeys(world.manners, Known()))
        self.first = self.rollout = begin(found.waves)
        self.hear(*world.retained())

    def hear(self, *words: Word) -> None:
        self.step(Heard(words))

    def step(self, event: Event, *, is_refused: bool = False) -> None:
        before = self.rollout
        self.journal.append((event, self.now))
        self.rollout, sends = advance(self.plan, before, event, self.now)
        self._check(before, sends)
        if is_refused and sends:
            self.step(Refused(sends))
            return
        canceled = [send for send in sends if send.purpose is Purpose.CANCEL]
        for send in sends:
            self.world.take(send)
        told = [Told(send.device, Purpose.DO, self.world.told[send.device, Purpose.DO]) for send in canceled]
        if told:
            self.hear(*told)

    def _check(self, before: Rollout, sends: Sequence[Send]) -> None:
        after, plan = self.rollout, self.plan
        begun = [send.device for send in sends if send.purpose is Purpose.DO]
        assert after.in_flight <= max(plan.pace.max_in_flight, before.in_flight)
        if has_failed(plan, after):
            assert not begun
            assert after.status is not Status.RUNNING
        if before.status.is_over:
            assert (after, tuple(sends)) == (before, ())
        for name, device in after.devices.items():
            was = before.devices[name]
            if was.outcome is not None and was.outcome is not Outcome.SUCCEEDED:
                assert device.outcome is was.outcome
            if device.outcome is Outcome.SUCCEEDED:
                assert device.operation == "succeeded"
        for name in begun:
            assert after.devices[name].wave <= after.wave
            assert before.devices[name].is_pending

    def dies(self, *, journal: bool) -> None:
        """Begin again, from the journal or from what devices retain alone."""
        before, self.rollout = self.rollout, self.first
        if journal:
            for event, at in self.journal:
                self.rollout, _ = advance(self.plan, self.rollout, event, at)
            assert self.rollout == before
        else:
            self.journal = []
        owed = unanswered(self.plan, self.rollout)
        self.hear(*self.world.retained())
        for send in owed:
            self.world.take(send)

    def carry_out(
        self, order: Sequence[int], deaths: Mapping[int, bool], refusals: Collection[int] = frozenset()
    ) -> None:
        choices = iter(order)
        for number in range(MAX_STEPS):
            if number in deaths:
                self.dies(journal=deaths[number])
            if self.rollout.status in (Status.PAUSED, Status.FINISHED, Status.ABORTED) and not self.world.open:
                return
            word = self.world.finish(next(choices, 0))
            self.now += 1.0 if word else STEP_S
            self.step(Heard((word,)) if word else Ticked(), is_refused=number in refusals)
            if self.rollout.status.is_over or (self.rollout.status is Status.PAUSED and self.rollout.in_flight == 0):
                return
        raise AssertionError(f"no end in {MAX_STEPS} steps: {self.rollout}")


def has_failed(plan: Plan, rollout: Rollout) -> bool:
    """Say whether more has failed in a wave than may, counted from scratch; a person's going on forgives what did."""
    for wave, count in enumerate(tallies(plan, rollout)):
        failed = count.failed - rollout.forgiven.get(wave, 0)
        is_judged = count.succeeded + count.failed >= plan.errors.min_devices
        if is_judged and failed > 0 and failed / count.touched > plan.errors.percent / 100:
            return True
    return False


def ends(rollout: Rollout) -> dict[str, tuple[Outcome | None, bool, Undo | None]]:
    return {name: (device.outcome, device.was_sent, device.undo) for name, device in rollout.devices.items()}


@given(plans(), ANY, answers, st.dictionaries(st.integers(0, 80), st.booleans(), max_size=4))
def test_every_rollout_ends_and_keeps_its_limits_however_often_the_operator_dies(
    plan: Plan, fleet: dict[str, Manner], order: list[int], deaths: dict[int, bool]
) -> None:
    operator = Operator(plan, World(fleet))
    operator.carry_out(order, deaths)
    if operator.rollout.status is Status.FINISHED:
        assert all(device.stage is Stage.SETTLED for device in operator.rollout.devices.values())
        for wave, count in enumerate(tallies(plan, operator.rollout)):
            assert count.succeeded * 100 >= plan.success_of(wave).percent * (count.total - count.skipped)


@given(plans(), ANSWERING, answers, st.sets(st.integers(0, 40), min_size=1))
def test_a_broker_that_refuses_now_and_then_costs_no_device_its_outcome(
    plan: Plan, fleet: dict[str, Manner], order: list[int], refusals: set[int]
) -> None:
    operator = Operator(plan, World(fleet))
    operator.carry_out(order, {}, refusals)
    assert all(device.outcome is not Outcome.TIMED_OUT for device in operator.rollout.devices.values())
    sent = {name for name, device in operator.rollout.devices.items() if device.was_sent}
    assert sent == set(operator.world.received)


@given(plans(), ANY, answers)
def test_from_the_moment_that_too_many_failed_nobody_is_touched_but_those_in_flight(
    plan: Plan, fleet: dict[str, Manner], order: list[int]
) -> None:
    world = World(fleet)
    operator = Operator(plan, world)
    touched: list[str] = []
    for choice in [*order, *[0] * MAX_STEPS]:
        if has_failed(plan, operator.rollout) and not touched:
            touched = [*world.received]
        word = world.finish(choice)
        operator.now += 1.0 if word else STEP_S
        operator.step(Heard((word,)) if word else Ticked())
        if operator.rollout.status is Status.PAUSED and operator.rollout.in_flight == 0:
            break
        if operator.rollout.status.is_over:
            break
    if touched:
        assert world.received == touched


@given(
    plan=plans(),
    fleet=ANSWERING,
    order=answers,
    deaths=st.sets(st.integers(0, 60), min_size=1, max_size=6),
    has_journal=st.booleans(),
)
def test_an_operator_that_died_anywhere_comes_to_the_same_end(
    plan: Plan, fleet: dict[str, Manner], order: list[int], deaths: set[int], *, has_journal: bool
) -> None:
    plan = plan.model_copy(update={"pace": plan.pace.model_copy(update={"soak_s": 0.0})})
    undisturbed = Operator(plan, World(fleet))
    undisturbed.carry_out(order, {})
    died = Operator(plan, World(fleet))
    died.carry_out(order, dict.fromkeys(deaths, has_journal))
    assert died.rollout.status is undisturbed.rollout.status
    assert ends(died.rollout) == ends(undisturbed.rollout)
    assert died.world.received == undisturbed.world.received

    over = died.rollout.status
    died.dies(journal=False)
    assert died.rollout.status is over or (over, died.rollout.status) == (Status.ABORTED, Status.ABORTING)
    assert died.world.received == undisturbed.world.received


@given(plans(), ANY, answers)
def test_when_it_aborts_with_a_rollback_what_succeeded_is_taken_back_and_nothing_else(
    plan: Plan, fleet: dict[str, Manner], order: list[int]
) -> None:
    plan = plan.model_copy(update={"on_abort": plan.on_abort.model_copy(update={"rollback": True})})
    operator = Operator(plan, World(fleet))
    operator.carry_out(order, {})
    for device in operator.rollout.devices.values():
        if operator.rollout.status is Status.ABORTED:
            assert (device.undo is Undo.DONE) is (device.operation == "succeeded")
        else:
            assert device.undo is None


@given(plans(), ANY, answers, st.integers(0, 30))
def test_a_person_can_abort_at_any_time_and_go_on_from_every_pause(
    plan: Plan, fleet: dict[str, Manner], order: list[int], when: int
) -> None:
    operator = Operator(plan, World(fleet))
    operator.carry_out(order, {})
    resumed = 0
    while operator.rollout.status is Status.PAUSED:
        operator.step(Asked("resume"))
        operator.carry_out(order, {})
        resumed += 1
        assert resumed <= 3 * len(fleet) + 3
    assert operator.rollout.status.is_over

    aborted = Operator(plan, World(fleet))
    for choice in order[:when]:
        word = aborted.world.finish(choice)
        aborted.step(Heard((word,)) if word else Ticked())
    if not aborted.rollout.status.is_over:
        received = [*aborted.world.received]
        aborted.step(Asked("abort"))
        aborted.carry_out([], {})
        assert aborted.rollout.status is Status.ABORTED
        assert aborted.world.received == received


@given(st.lists(st.integers(0, 10_000), unique=True, min_size=1, max_size=60), st.data())
def test_every_device_is_in_one_wave_whatever_order_they_become_known_in(
    numbers: list[int], data: st.DataObject
) -> None:
    plan = data.draw(plans())
    known = {f"box-{number}": Known() for number in numbers}
    shuffled = data.draw(st.permutations(list(known)))
    found = members(plan, known)
    assert found == members(plan, {name: known[name] for name in shuffled})
    assert sorted(device for wave in found.waves for device in wave) == sorted(known)
    for wave, upto in zip(plan.waves, range(1, 4), strict=True):
        share = sum(map(len, found.waves[:upto])) / len(known)
        assert wave.percent is not None
        assert wave.percent / 100 - 1e-9 <= share < wave.percent / 100 + 1 / len(known)


def test_the_order_is_another_one_in_another_rollout() -> None:
    known = {f"box-{number}": Known() for number in range(30)}
    plan = Plan(format=1, id="a", command=Command(name="replan", model="m"), waves=(Wave(name="all", percent=100),))
    other = replace_id(plan, "b")
    assert members(plan, known).waves[0] != members(other, known).waves[0]


def replace_id(plan: Plan, name: str) -> Plan:
    return plan.model_copy(update={"id": name})
