"""The shell around the machine, with a record on a real disk: what is applied, recorded and sent, in which order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from agent.adapters.mqtt_operator import Heard, RefusedMessageError
from agent.contract.wire import dump
from agent.fleet.rollout import commands
from agent.fleet.rollout.events import Asked, Purpose
from agent.fleet.rollout.journal import Journal
from agent.fleet.rollout.link import Link
from agent.fleet.rollout.plan import Plan
from agent.fleet.rollout.report import build
from agent.fleet.rollout.running import Runner
from agent.fleet.rollout.state import Outcome, Stage, Status, Undo

if TYPE_CHECKING:
    from pathlib import Path

    from agent.fleet.rollout.state import Rollout
    from agent.fleet.rollout.timeline import Entry

NOON = 1_795_003_200.0  # 2026-11-18, a Wednesday, 12:00 UTC
TIMEOUT_S = 100.0


def plan(**more: Any) -> Plan:
    waves = [{"name": "first", "devices": ["a"]}, {"name": "rest", "devices": ["b", "c"]}]
    body = {
        "schema": 1,
        "id": "r",
        "command": {"name": "set_method", "model": "kanji", "method": "nf4"},
        "waves": waves,
        "pace": {"timeout_s": TIMEOUT_S, "soak_s": 50},
        **more,
    }
    return Plan.model_validate(body)


@dataclass
class Broker:
    """What was published, as ``command device``, and whether it is refused."""

    published: list[str] = field(default_factory=list)
    is_refusing: bool = False

    def publish(self, topic: str, _payload: bytes, *, expiry_s: float | None = None) -> None:
        assert expiry_s == TIMEOUT_S
        if self.is_refusing:
            raise RefusedMessageError(f"broker b:1 refuses a message on {topic}: Not authorized")
        _, _, device, _, command = topic.split("/")
        self.published.append(f"{command} {device}")


@dataclass
class Desk:
    """An operator who can be killed between any two steps, and goes on with the record or without it."""

    directory: Path
    plan: Plan
    now: float = NOON
    broker: Broker = field(default_factory=Broker)
    retained: list[Heard] = field(default_factory=list)
    told: list[Entry] = field(default_factory=list)

    def online(self, *devices: str) -> None:
        self.retained += [said(device, "presence", state="online") for device in devices]

    def run(self, after_s: float = 0.0) -> Rollout:
        """Take it up from what is retained, and be killed then."""
        self.now += after_s
        journal = Journal(self.directory, self.plan)
        journal.lock()
        link = Link(self.plan, self.broker, "edge/v1")  # type: ignore[arg-type]  # what a rollout needs of it
        runner = Runner(self.plan, journal, link, tell=self.told.append, ask=lambda *_: None, clock=lambda: self.now)
        try:
            runner.start(self.retained)
        finally:
            journal.close()
        return runner.rollout

    def ask(self, what: str) -> None:
        Journal(self.directory, self.plan).ask(what, None)

    def end(self, device: str, state: str = "succeeded") -> None:
        """Let a device end what it was sent, and say what it serves."""
        operation = commands.operation_id(self.plan, device, Purpose.DO)
        self.retained.append(said(device, f"op/{operation}", state=state, at="2026-11-18T12:00:10.000Z"))

    def texts(self) -> list[str]:
        texts, self.told = [entry.text for entry in self.told], []
        return texts


def said(device: str, kind: str, **body: Any) -> Heard:
    return Heard(f"edge/v1/{device}/{kind}", dump(body), is_retained=True)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path / "r", plan())
    desk.online("a", "b", "c")
    return desk


@pytest.fixture
def soaking(desk: Desk) -> Desk:
    """The first wave has succeeded; its soak is over whenever somebody looks again."""
    desk.run()
    desk.end("a")
    desk.run()
    assert desk.broker.published == ["set_method a"]
    desk.now += 60.0
    desk.texts()
    return desk


@pytest.mark.parametrize(("what", "status"), [("abort", Status.ABORTED), ("pause", Status.PAUSED)])
def test_what_was_asked_for_while_nobody_ran_it_holds_before_anything_is_sent(
    soaking: Desk, what: str, status: Status
) -> None:
    soaking.ask(what)
    assert soaking.run().status is status
    assert soaking.broker.published == ["set_method a"]
    assert soaking.run().status is status, "the record has it"


def test_without_a_request_the_next_wave_begins(soaking: Desk) -> None:
    assert soaking.run().wave == 1
    assert soaking.broker.published == ["set_method a", "set_method b", "set_method c"]


def test_requests_that_came_together_are_taken_up_together(soaking: Desk) -> None:
    for what in ("pause", "resume", "abort"):
        soaking.ask(what)
    assert soaking.run().status is Status.ABORTED
    assert soaking.broker.published == ["set_method a"]
    assert Journal(soaking.directory, soaking.plan).requests_done() == 3


def test_a_failure_that_nobody_had_heard_of_is_not_forgiven_by_a_resume_from_before(desk: Desk) -> None:
    desk.run()
    desk.ask("pause")
    assert desk.run().status is Status.PAUSED
    desk.ask("resume")
    desk.end("a", "failed")
    rollout = desk.run()
    assert rollout.status is Status.PAUSED
    assert rollout.reason == "wave first: 0 of 1 devices succeeded, 90 % have to"


def test_what_the_broker_refuses_ends_it_and_no_time_runs_for_who_was_not_sent_anything(soaking: Desk) -> None:
    soaking.broker.is_refusing = True
    with pytest.raises(RefusedMessageError, match="set_method: Not authorized"):
        soaking.run()
    assert soaking.texts() == [
        "wave rest begins: 2 devices",
        "b started",
        "c started",
        "b was not sent it: the broker refuses",
        "c was not sent it: the broker refuses",
    ]
    soaking.broker.is_refusing = False
    rollout = soaking.run(after_s=10 * TIMEOUT_S)
    assert {device.outcome for device in rollout.devices.values()} == {Outcome.SUCCEEDED, None}
    assert rollout.devices["b"].stage is Stage.STARTED
    assert soaking.broker.published[1:] == ["set_method b", "set_method c"]


def test_a_way_back_that_the_broker_refuses_is_gone_another_time(soaking: Desk) -> None:
    soaking.plan = plan(on_abort={"rollback": True}, undo={"name": "set_method", "model": "kanji", "method": "fp4"})
    soaking.directory = soaking.directory.with_name("with-undo")
    soaking.run()
    soaking.broker.published.clear()
    soaking.ask("abort")
    soaking.broker.is_refusing = True
    with pytest.raises(RefusedMessageError):
        soaking.run()
    assert soaking.texts()[-1] == "a taking back: the broker refuses"
    soaking.broker.is_refusing = False
    rollout = soaking.run(after_s=10 * TIMEOUT_S)
    assert (rollout.devices["a"].undo, rollout.status) == (Undo.SENT, Status.ABORTING)
    assert soaking.broker.published == ["set_method a"]


def test_outside_of_a_window_each_program_says_once_what_is_waited_for(desk: Desk) -> None:
    desk.plan = plan(windows=[{"days": ["tue"], "from": "03:00", "to": "05:00", "timezone": "Europe/Berlin"}])
    waits = "rollout r waits for the window, opens Tue 03:00 Europe/Berlin"
    desk.run()
    assert desk.texts() == ["wave first begins: 1 device", waits]
    desk.run(after_s=60.0)
    assert desk.texts() == [waits]
    assert desk.broker.published == []
    entries = build(desk.plan, Journal(desk.directory, desk.plan).history())["timeline"]
    assert [entry["event"] for entry in entries] == ["wave_begun", "window_awaited"]


def test_who_needs_no_way_back_is_not_said_to_be_sent_one(soaking: Desk) -> None:
    soaking.plan = plan(on_abort={"rollback": True})
    soaking.directory = soaking.directory.with_name("with-rollback")
    soaking.run()
    soaking.texts()
    soaking.ask("abort")
    assert soaking.run().status is Status.ABORTED
    assert soaking.texts() == [
        "rollout r aborts: a person aborted it",
        "a taking back: not needed: kanji is not served any more",
        "rollout r is aborted: a person aborted it",
    ]
    entries = build(soaking.plan, Journal(soaking.directory, soaking.plan).history())["timeline"]
    assert [entry["event"] for entry in entries[-3:]] == ["rollout_aborting", "undo_not_needed", "rollout_aborted"]


def test_a_record_of_requests_with_what_was_heard_is_read_as_it_was(soaking: Desk) -> None:
    soaking.ask("abort")
    soaking.run()
    *_, (last, _) = Journal(soaking.directory, soaking.plan).events()
    assert last.asked == (Asked("abort"),)  # type: ignore[union-attr]
