"""``nibblectl rollout`` at an operator's desk: a login without rights, a record on another machine, and plain words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from agent.fleet.cli import main
from agent.fleet.rollout.journal import Journal
from agent.fleet.rollout.plan import load
from tests.e2e.harness.mqtt import Broker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

    from tests.fakes.obedient import FakeFleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PLAN = """
schema = 1
id = "kanji-dq"
[command]
name = "set_method"
model = "kanji"
method = "nf4-dq"
[[waves]]
name = "canary"
devices = ["box-1"]
[[waves]]
name = "rest"
percent = 100
approval = true
[pace]
soak_s = 0
"""
ACL = "topic readwrite #\nuser reader\ntopic read #\n"


class Desk:
    """The operator's machine, in this process."""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self.plan = directory / "plan.toml"
        self.plan.write_text(PLAN)
        self.state = directory / "state"

    def run(self, *arguments: str, status: int, options: tuple[str, ...] = (), state: str = "here") -> Result:
        """Run ``nibblectl OPTIONS rollout ARGUMENTS``, with the plan in place of ``PLAN``."""
        line = ["--port", str(self.port), "--no-wait", *options, "rollout"]
        line += [str(self.plan) if each == "PLAN" else each for each in arguments]
        done = CliRunner().invoke(main, [*line, "--state-dir", str(self.state / state)], prog_name="nibblectl")
        assert done.exit_code == status, done.output
        return done

    def report(self, state: str = "here") -> dict[str, Any]:
        done = self.run("report", "PLAN", status=0, options=("--json",), state=state)
        report: dict[str, Any] = json.loads(done.stdout)["report"]
        return report


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    directory = tmp_path_factory.mktemp("broker")
    (directory / "acl").write_text(ACL)
    (directory / "acl").chmod(0o600)
    broker = Broker(directory, f"acl_file {directory}/acl\n")
    broker.start()
    yield broker.port
    broker.stop()


@pytest.fixture
def boxes() -> dict[str, dict[str, str]]:
    return {name: {} for name in ("box-1", "box-2", "box-3")}


def test_a_login_that_may_not_publish_is_told_so_and_no_device_counts_as_failed(fleet: FakeFleet, desk: Desk) -> None:
    done = desk.run("PLAN", status=4, options=("--username", "reader"))
    assert "refuses a message on edge/v1/box-1/cmd/set_method: Not authorized" in done.stderr
    assert f"go on: nibblectl rollout {desk.plan}" in done.stderr
    (canary,) = (device for device in desk.report()["devices"] if device["device"] == "box-1")
    assert (canary["stage"], canary["outcome"]) == ("waiting", None)
    desk.run("PLAN", status=3)
    assert fleet.received("set_method") == ["box-1"]
    assert desk.report()["waves"][0]["succeeded"] == 1


@pytest.mark.parametrize("how", ["with the record", "on another machine", "with --forget"])
def test_a_device_that_was_rolled_back_while_nobody_ran_it_counts_against_the_wave(
    fleet: FakeFleet, desk: Desk, how: str
) -> None:
    desk.run("PLAN", status=3)
    fleet.serve("box-1", "1")  # by hand, with the method of before
    state = "there" if how == "on another machine" else "here"
    more = ["--forget"] if how == "with --forget" else []
    desk.run("PLAN", "--approve-all", *more, status=3, state=state)
    report = desk.report(state)
    (canary,) = (device for device in report["devices"] if device["device"] == "box-1")
    assert (canary["outcome"], canary["detail"]) == ("regressed", "it serves something else by now")
    assert (report["status"], fleet.received("set_method")) == ("paused", ["box-1"])


def test_what_was_asked_for_while_nobody_ran_it_is_one_decision(fleet: FakeFleet, desk: Desk) -> None:
    desk.run("PLAN", status=3)
    desk.run("approve", "PLAN", "--wave", "rest", status=0)
    desk.run("abort", "PLAN", status=0)
    done = desk.run("PLAN", status=1)
    assert "started" not in done.stdout
    assert fleet.received("set_method") == ["box-1"]


@pytest.mark.parametrize("what", ["pause", "resume", "abort", "approve"])
def test_what_is_asked_for_is_one_json_object_where_that_is_wanted(fleet: FakeFleet, desk: Desk, what: str) -> None:
    desk.run("PLAN", status=3)
    wave = ["--wave", "rest"] if what == "approve" else []
    done = desk.run(what, "PLAN", *wave, status=0, options=("--json",))
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == {"rollout": "kanji-dq", "asked": what, **({"wave": "rest"} if wave else {})}
    assert fleet.received("set_method") == ["box-1"]


@pytest.mark.parametrize("what", ["pause", "resume", "abort", "approve"])
def test_a_rollout_that_is_over_takes_no_requests(fleet: FakeFleet, desk: Desk, what: str) -> None:
    desk.run("PLAN", status=3)
    desk.run("abort", "PLAN", status=0)
    desk.run("PLAN", status=1)
    wave = ["--wave", "rest"] if what == "approve" else []
    done = desk.run(what, "PLAN", *wave, status=2)
    last = desk.report()["timeline"][-1]
    assert last["event"] == "rollout_aborted"
    assert f"rollout kanji-dq is aborted since {last['at']}, there is nothing left to {what}" in done.stderr
    assert f"nibblectl rollout report {desk.plan}" in done.stderr
    assert (done.stdout, fleet.received("set_method")) == ("", ["box-1"])


def test_a_plan_that_was_edited_can_be_aborted_and_is_shown_by_what_the_devices_say(
    fleet: FakeFleet, desk: Desk
) -> None:
    desk.run("PLAN", status=3)
    desk.plan.write_text(PLAN.replace("percent = 100", "percent = 50"))
    done = desk.run("PLAN", "--dry-run", status=2)
    assert "or this one with --forget" in done.stderr
    done = desk.run("PLAN", "--dry-run", "--forget", status=0)
    assert "wave rest: 1 device, after approval" in done.stdout
    desk.run("abort", "PLAN", status=0)
    desk.plan.write_text(PLAN)
    desk.run("PLAN", status=1)
    assert fleet.received("set_method") == ["box-1"]


def test_the_record_of_a_rollout_that_runs_is_not_forgotten(fleet: FakeFleet, desk: Desk) -> None:
    desk.run("PLAN", status=3)
    journal = Journal(desk.state / "here" / "kanji-dq", load(desk.plan))
    journal.lock()
    assert "is being run by another process here" in desk.run("PLAN", "--forget", status=2).stderr
    journal.close()
    assert desk.report()["waves"][0]["succeeded"] == 1
    assert fleet.received("set_method") == ["box-1"]


def test_a_device_that_still_serves_what_was_brought_is_a_success_on_another_machine(
    fleet: FakeFleet, desk: Desk
) -> None:
    desk.run("PLAN", status=3)
    desk.run("PLAN", "--approve-all", status=0, state="there")
    assert fleet.received("set_method") == ["box-1", "box-2", "box-3"]
