"""The machine of a rollout, case by case: what its properties do not say in so many words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from agent.fleet.rollout.events import Asked, Heard, NotNeeded, Present, Purpose, Send, Serves, Ticked, Told
from agent.fleet.rollout.machine import advance, is_asking, unanswered
from agent.fleet.rollout.plan import Plan
from agent.fleet.rollout.state import Device, Outcome, Stage, Status, Undo, begin
from agent.fleet.rollout.timeline import changes

if TYPE_CHECKING:
    from agent.fleet.rollout.events import Event, Word
    from agent.fleet.rollout.timeline import Entry

WAVES = (("a", "b"), ("c", "d", "e"))
NOON = 1_795_003_200.0  # 2026-11-18, a Wednesday, 12:00 UTC


def plan(**more: Any) -> Plan:
    body = {
        "schema": 1,
        "id": "r",
        "command": {"name": "set_method", "model": "kanji", "method": "nf4"},
        "waves": [{"name": "first", "percent": 40}, {"name": "second", "percent": 100}],
        "pace": {"timeout_s": 100, "soak_s": 50, **more.pop("pace", {})},
        **more,
    }
    return Plan.model_validate(body)


@dataclass
class Case:
    """A rollout at noon, of which everything that was sent and told is kept."""

    plan: Plan
    now: float = NOON
    sent: list[Send] = field(default_factory=list)
    told: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rollout = begin(WAVES)

    def step(self, event: Event, after_s: float = 0.0) -> list[str]:
        """Return what is sent, as ``purpose device``."""
        self.now += after_s
        before = self.rollout
        self.rollout, sends = advance(self.plan, before, event, self.now)
        self.sent += sends
        self.told += changes(self.plan, before, self.rollout, self.now)
        return [f"{send.purpose} {send.device}" for send in sends]

    def hear(self, *words: Word, after_s: float = 0.0) -> list[str]:
        return self.step(Heard(words), after_s)

    def online(self, *devices: str) -> list[str]:
        return self.hear(*(Present(device, is_online=True) for device in devices))

    def end(self, *devices: str, state: str = "succeeded", purpose: Purpose = Purpose.DO) -> list[str]:
        return self.hear(*(Told(device, purpose, state) for device in devices))

    def status(self) -> Status:
        return self.rollout.status

    def opens(self) -> float | None:
        return self.rollout.opens

    def device(self, name: str) -> Device:
        return self.rollout.devices[name]

    def events(self) -> list[str]:
        return [entry.event for entry in self.told]


def test_waves_follow_each_other_after_the_soak_and_the_rollout_ends_after_the_last_one_s() -> None:
    case = Case(plan())
    assert case.online(*"abcde") == ["do a", "do b"]
    assert case.end("a") == []
    assert case.end("b") == []
    assert case.step(Ticked(), 49.0) == []
    assert case.step(Ticked(), 1.0) == ["do c", "do d", "do e"]
    case.end("c", "d", "e")
    case.step(Ticked(), 49.0)
    assert case.status() is Status.RUNNING
    case.step(Ticked(), 1.0)
    assert case.status() is Status.FINISHED
    assert case.events()[0] == "wave_begun"
    assert case.events()[-1] == "rollout_finished"
    assert case.told[-1].text == "rollout r is finished"


def test_accepted_and_running_are_no_success_and_the_trial_s_rollback_is_a_failure() -> None:
    case = Case(plan())
    case.online("a", "b")
    case.end("a", state="running")
    assert case.device("a").stage is Stage.STARTED
    case.end("a", state="rolled_back")
    assert case.device("a").outcome is Outcome.FAILED


def test_no_device_is_begun_with_outside_of_the_windows_and_those_in_flight_go_on() -> None:
    case = Case(plan(windows=[{"from": "11:00", "to": "12:01"}, {"from": "14:00", "to": "15:00"}]))
    assert case.online("a", "c", "d", "e") == ["do a"]
    assert case.step(Ticked(), 90.0) == []
    assert case.online("b") == []
    case.end("a")
    assert case.device("a").outcome is Outcome.SUCCEEDED
    case.step(Ticked(), 3600.0)
    assert case.device("b").stage is Stage.AWAY, "time stands still for who cannot be begun with"
    assert case.step(Ticked(), 3600.0) == ["do b"]


def test_a_wait_for_a_window_is_told_once_and_is_over_when_it_opens_or_nobody_waits() -> None:
    windows = [{"from": "11:00", "to": "12:01"}, {"from": "15:00", "to": "16:00", "timezone": "Europe/Berlin"}]
    case = Case(plan(windows=windows))
    case.online(*"acde")
    case.end("a")
    assert "window_awaited" not in case.events(), "the window is open"
    for _ in range(3):
        case.step(Ticked(), 90.0)
    (told,) = (entry for entry in case.told if entry.event == "window_awaited")
    assert told.text == "rollout r waits for the window, opens Wed 15:00 Europe/Berlin"
    assert case.opens() == NOON + 2 * 3600
    case.step(Asked("pause"))
    assert case.opens() is None
    case.step(Asked("resume"))
    assert case.events().count("window_awaited") == 2, "another wait"
    case.step(Ticked(), 2 * 3600)
    assert case.opens() is None


def test_a_wave_that_needs_approval_waits_for_it_once_its_turn_has_come() -> None:
    case = Case(plan(waves=[{"name": "first", "percent": 40}, {"name": "second", "percent": 100, "approval": True}]))
    case.online(*"abcde")
    case.end("a", "b")
    assert not is_asking(case.plan, case.rollout, case.now)
    case.step(Ticked(), 50.0)
    assert is_asking(case.plan, case.rollout, case.now)
    assert case.step(Asked("approve", 1)) == ["do c", "do d", "do e"]


def test_the_first_wave_can_need_approval_too_and_it_can_be_given_early() -> None:
    waves = [{"name": "first", "percent": 40, "approval": True}, {"name": "second", "percent": 100}]
    case = Case(plan(waves=waves))
    assert case.online(*"abcde") == []
    assert is_asking(case.plan, case.rollout, case.now)
    assert case.step(Asked("approve", 0)) == ["do a", "do b"]


@pytest.mark.parametrize(("rule", "outcome"), [("fail", Outcome.OFFLINE), ("skip", Outcome.SKIPPED)])
def test_who_is_offline_at_its_turn_is_pending_until_its_time_is_over(rule: str, outcome: Outcome) -> None:
    case = Case(plan(pace={"offline": rule}))
    assert case.online("a") == ["do a"]
    assert case.device("b").stage is Stage.AWAY
    case.end("a")
    case.step(Ticked(), 99.0)
    assert case.device("b").outcome is None
    case.step(Ticked(), 1.0)
    assert case.device("b").outcome is outcome
    assert not case.device("b").was_sent
    if outcome is Outcome.OFFLINE:
        assert case.rollout.reason == "wave first: 1 of 2 devices succeeded, 90 % have to"


def test_a_device_without_an_end_is_out_of_time_and_canceled_and_a_late_success_is_still_taken_back() -> None:
    case = Case(plan(on_abort={"rollback": True}, success={"percent": 100, "then": "abort"}))
    case.online("a", "b")
    case.end("a", "b", state="running")
    case.end("b")
    assert case.step(Ticked(), 100.0) == ["cancel a", "undo b"]
    case.end("a")
    assert case.device("a").outcome is Outcome.TIMED_OUT
    assert case.device("a").undo is Undo.SENT


def test_more_failures_than_may_be_pause_where_the_plan_says_so_and_a_person_goes_on() -> None:
    case = Case(
        plan(waves=[{"name": "all", "percent": 100}], errors={"percent": 10, "min_devices": 1, "then": "pause"})
    )
    case.rollout = begin((("a", "b", "c", "d", "e"),))
    case.plan = case.plan.model_copy(update={"pace": case.plan.pace.model_copy(update={"max_in_flight": 2})})
    assert case.online(*"abcde") == ["do a", "do b"]
    assert case.end("a", state="failed") == []
    assert case.rollout.reason == "wave all: 1 of 2 devices failed, 10 % may"
    assert case.end("b") == []
    assert case.step(Asked("resume")) == ["do c", "do d"]
    assert case.end("c") == ["do e"]
    assert case.end("d", state="failed") == []
    assert case.status() is Status.PAUSED, "a new failure counts again"


def test_too_few_devices_have_ended_to_judge_by_them() -> None:
    case = Case(plan(waves=[{"name": "all", "percent": 100}], errors={"percent": 0, "min_devices": 3}))
    case.rollout = begin((("a", "b", "c", "d", "e"),))
    case.online(*"abcde")
    case.end("a", "b", state="failed")
    assert case.status() is Status.RUNNING
    case.end("c")
    assert case.status() is Status.ABORTING
    assert case.rollout.reason == "wave all: 2 of 5 devices failed, 0 % may"


def test_an_abort_cancels_what_is_in_flight_and_takes_back_what_succeeded_at_the_same_pace() -> None:
    case = Case(plan(on_abort={"rollback": True}, pace={"max_in_flight": 2}, waves=[{"name": "all", "percent": 100}]))
    case.rollout = begin((("a", "b", "c", "d", "e"),))
    case.online(*"abcde")
    case.end("a", "b")
    case.end("c")
    assert case.step(Asked("abort")) == ["cancel d", "cancel e"]
    assert case.end("d", "e", state="canceled") == ["undo a", "undo b"]
    assert case.end("a", purpose=Purpose.UNDO) == ["undo c"]
    case.end("b", purpose=Purpose.UNDO, state="failed")
    assert case.status() is Status.ABORTING
    case.hear(NotNeeded("c", "kanji is not served any more"))
    assert case.status() is Status.ABORTED
    undone = {name: device.undo for name, device in case.rollout.devices.items() if device.undo}
    assert undone == {"a": Undo.DONE, "b": Undo.FAILED, "c": Undo.NOT_NEEDED}


def test_an_abort_without_a_rollback_leaves_what_is_there() -> None:
    case = Case(plan(on_abort={"in_flight": "finish"}))
    case.online("a", "b")
    case.end("a")
    assert case.step(Asked("abort")) == []
    assert case.status() is Status.ABORTING
    case.end("b")
    assert case.status() is Status.ABORTED
    assert [send.purpose for send in case.sent] == [Purpose.DO, Purpose.DO]


def test_who_is_away_when_it_is_to_be_taken_back_is_waited_for_and_then_told() -> None:
    case = Case(plan(on_abort={"rollback": True}))
    case.online("a", "b")
    case.end("a", "b")
    case.hear(Present("a", is_online=False))
    assert case.step(Asked("abort")) == ["undo b"]
    case.end("b", purpose=Purpose.UNDO)
    case.step(Ticked(), 100.0)
    assert case.status() is Status.ABORTED
    assert (case.device("a").undo, case.device("a").undo_detail) == (Undo.FAILED, "offline")


def test_a_device_that_serves_something_else_during_the_soak_counts_as_a_failure() -> None:
    case = Case(plan())
    case.online("a", "b")
    case.hear(Serves("a", is_ours=False))
    case.end("a", "b")
    assert case.device("a").outcome is Outcome.SUCCEEDED, "what it said before does not count"
    case.hear(Serves("a", is_ours=True))
    case.hear(Serves("a", is_ours=False), after_s=10.0)
    assert case.device("a").outcome is Outcome.REGRESSED
    assert case.status() is Status.PAUSED


def test_what_a_device_serves_since_its_success_counts_also_where_nobody_saw_it_serve() -> None:
    case = Case(plan())
    case.online("a", "b")
    case.end("b")
    case.hear(Serves("a", is_ours=False, is_since=True), Told("a", Purpose.DO, "succeeded"))
    assert (case.device("a").outcome, case.device("a").detail) == (Outcome.REGRESSED, "it serves something else by now")
    assert case.status() is Status.PAUSED


def test_a_device_that_was_taken_back_serves_something_else_and_has_not_regressed() -> None:
    case = Case(plan(on_abort={"rollback": True}))
    told = [Told("a", purpose, "succeeded") for purpose in (Purpose.DO, Purpose.UNDO)]
    case.hear(told[0], Serves("a", is_ours=False, is_since=True), told[1])
    assert (case.device("a").outcome, case.device("a").undo) == (Outcome.SUCCEEDED, Undo.DONE)


def test_what_was_sent_and_never_answered_is_sent_again_by_whoever_goes_on() -> None:
    case = Case(plan())
    case.online("a", "b")
    case.end("a", state="accepted")
    assert unanswered(case.plan, case.rollout) == (Send("b", Purpose.DO),)
    case.step(Asked("abort"))
    assert set(unanswered(case.plan, case.rollout)) == {Send("a", Purpose.CANCEL), Send("b", Purpose.CANCEL)}


def test_without_a_journal_nobody_is_begun_with_beyond_those_who_are_silent() -> None:
    case = Case(plan(pace={"soak_s": 0}))
    words = [Present(device, is_online=True) for device in "acde"]
    assert case.hear(*words, Told("a", Purpose.DO, "succeeded"), Told("d", Purpose.DO, "running")) == ["do c"]
    assert case.rollout.wave == 1
    assert case.device("b").stage is Stage.AWAY
    case.end("c", "d")
    assert case.device("e").stage is Stage.WAITING, "b may have counted as a failure before"
    assert case.step(Ticked(), 100.0) == []
    assert case.device("b").outcome is Outcome.OFFLINE


def test_without_a_journal_a_rollout_that_was_being_taken_back_is_aborted() -> None:
    case = Case(plan(on_abort={"rollback": True}))
    words = [Present(device, is_online=True) for device in "abcde"]
    told = [Told(device, Purpose.DO, "succeeded") for device in "ab"]
    assert case.hear(*words, *told, Told("a", Purpose.UNDO, "succeeded")) == ["undo b"]
    assert case.rollout.reason == "devices are being taken back already"


def test_a_rollout_that_is_over_is_deaf() -> None:
    case = Case(plan())
    case.online("a", "b")
    case.end("a", "b")
    case.step(Asked("abort"))
    over = case.rollout
    assert over.status is Status.ABORTED
    assert case.step(Asked("resume")) == []
    assert case.online("c") == []
    assert case.rollout == over
