"""``nibblectl rollout`` against a real broker and thirty devices that do as they are told."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from agent.fleet import keys
from tests.e2e.harness.mqtt import Broker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes.obedient import FakeBox, FakeFleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICES = [f"box-{number:02}" for number in range(30)]
CANARIES = ["box-03", "box-04", "box-05"]
WAVES = ("canary", "site", "half", "rest")
PLAN = """
schema = 1
id = "{id}"

[command]
name = "deploy"
model = "kanji"
manifest = "manifest.json"

[[waves]]
name = "canary"
devices = ["box-03", "box-04", "box-05"]
[[waves]]
name = "site"
label = {{ site = "north" }}
[[waves]]
name = "half"
percent = 50
[[waves]]
name = "rest"
percent = 100

[pace]
max_in_flight = 4
soak_s = 0
timeout_s = {timeout_s}
{more}
"""


class Desk:
    """The operator's machine: a plan, and a record that may get lost."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.login = ["--port", str(port)]
        self.plan = directory / "plan.toml"
        self.state = directory / "state"
        private, _ = keys.generate(directory, "operator")
        files = [{"name": "kanji.pt", "url": "https://h.example/kanji.pt", "sha256": "a" * 64, "size": 9}]
        body = {"model": "kanji", "version": "2", "sequence": 2, "files": files}
        (directory / "manifest.json").write_text(json.dumps(keys.sign(body, private)))
        self.write("kanji-2")

    def write(self, name: str, more: str = "", *, timeout_s: float = 30) -> None:
        self.plan.write_text(PLAN.format(id=name, more=more, timeout_s=timeout_s))

    def command(self, *arguments: str) -> list[str]:
        if arguments[:1] and arguments[0] in ("approve", "pause", "resume", "abort", "report"):
            arguments = (arguments[0], str(self.plan), *arguments[1:])
        else:
            arguments = (str(self.plan), *arguments)
        return [
            sys.executable,
            "-m",
            "agent.fleet.cli",
            *self.login,
            "rollout",
            *arguments,
            "--state-dir",
            str(self.state),
        ]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def report(self) -> dict[str, Any]:
        done = self.run("report", "--json")
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)["report"]
        return report


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    broker = Broker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker.port
    broker.stop()


@pytest.fixture
def boxes() -> dict[str, dict[str, str]]:
    """Thirty devices, ten of them in the north."""
    return {name: {"site": "north" if number < 10 else "south"} for number, name in enumerate(DEVICES)}


def test_a_rollout_reaches_everybody_in_its_waves_and_its_report_says_so(fleet: FakeFleet, desk: Desk) -> None:
    shown = json.loads(desk.run("--dry-run", "--json").stdout)
    waves = {wave["name"]: wave["devices"] for wave in shown["waves"]}
    assert sorted(waves["canary"]) == CANARIES
    assert sorted(waves["site"]) == [name for name in DEVICES[:10] if name not in CANARIES]
    assert [len(waves[name]) for name in WAVES] == [3, 7, 5, 15]
    assert fleet.received("deploy") == []

    page = desk.directory / "report.html"
    done = desk.run("--html", str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    assert fleet.received("deploy") == DEVICES
    assert set(fleet.versions().values()) == {"2"}
    assert "rollout kanji-2 (deploy of kanji) is finished" in done.stdout
    assert page.read_text().count("<tr><td>box-") == 30

    report = desk.report()
    assert [(wave["name"], wave["succeeded"]) for wave in report["waves"]] == list(
        zip(WAVES, (3, 7, 5, 15), strict=True)
    )
    begun = [entry["device"] for entry in report["timeline"] if entry["event"] == "device_started"]
    assert begun == [device for name in WAVES for device in waves[name]]


@pytest.mark.parametrize("has_record", [True, False], ids=["record kept", "record lost"])
@pytest.mark.parametrize("boundary", WAVES)
def test_an_operator_that_is_killed_at_a_wave_s_boundary_goes_on_from_there(
    fleet: FakeFleet, desk: Desk, boundary: str, *, has_record: bool
) -> None:
    with desk.popen("--json") as operator:
        assert operator.stdout is not None
        for line in operator.stdout:
            told = json.loads(line)
            if (told.get("event"), told.get("wave")) == ("wave_begun", boundary):
                operator.kill()
                break
        else:
            pytest.fail("the wave was never begun")
    if not has_record:
        for file in (desk.state / "kanji-2").iterdir():
            file.unlink()
    done = desk.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert fleet.received("deploy") == DEVICES, "each device executed it once"
    assert set(fleet.versions().values()) == {"2"}


def has_activated(box: FakeBox) -> bool:
    return any(each["command"] == "deploy" and each["state"] == "succeeded" for each in box.operations.values())


def test_a_bad_release_is_stopped_in_time_and_taken_back_where_it_was_activated(fleet: FakeFleet, desk: Desk) -> None:
    for name in ("box-00", "box-01", "box-02", "box-06"):
        fleet.boxes[name].manner = "rolls back"
    desk.write(
        "bad-2",
        "[errors]\npercent = 20\nmin_devices = 3\nthen = 'abort'\n[on_abort]\nrollback = true\n",
    )
    done = desk.run()
    assert done.returncode == 1, done.stdout + done.stderr
    touched = fleet.received("deploy")
    assert set(CANARIES) < set(touched) <= set(DEVICES[:10])
    activated = [name for name in touched if has_activated(fleet.boxes[name])]  # others were cancelled in time
    assert fleet.received("rollback") == activated
    assert set(fleet.versions().values()) == {"1"}
    assert "wave site: " in done.stdout
    report = desk.report()
    assert report["status"] == "aborted"
    failed = {device["device"]: device["detail"] for device in report["devices"] if device["outcome"] == "failed"}
    assert "trial_failed: as it was told to" in failed.values()

    again = desk.run()
    assert again.returncode == 1
    assert fleet.received("deploy") == touched


def test_a_record_that_is_lost_while_devices_are_taken_back_changes_nothing(fleet: FakeFleet, desk: Desk) -> None:
    for name in CANARIES[:2]:
        fleet.boxes[name].manner = "fails"
    fleet.boxes["box-05"].models.clear()
    desk.write("bad-3", "[errors]\npercent = 0\nmin_devices = 3\n[on_abort]\nrollback = true\n")
    with desk.popen("--json") as operator:
        assert operator.stdout is not None
        for line in operator.stdout:
            if json.loads(line).get("event") == "undo_sent":
                operator.kill()
                break
    for file in (desk.state / "bad-3").iterdir():
        file.unlink()
    done = desk.run()
    assert done.returncode == 1, done.stdout + done.stderr
    assert fleet.received("deploy") == CANARIES
    assert fleet.received("undeploy") == ["box-05"], "there was no release before"
    assert [len(fleet.boxes[name].received) for name in CANARIES] == [1, 1, 2]


def test_a_wave_that_needs_approval_waits_for_it_from_another_terminal(fleet: FakeFleet, desk: Desk) -> None:
    desk.plan.write_text(desk.plan.read_text().replace('name = "site"', 'name = "site"\napproval = true'))
    ended = desk.run("--no-wait")
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert "wave site waits for approval" in ended.stderr
    assert fleet.received("deploy") == CANARIES
    with desk.popen() as operator:
        assert operator.stderr is not None
        assert "wave site waits for approval" in operator.stderr.readline()
        assert desk.run("approve", "--wave", "site").returncode == 0
        assert operator.wait(100) == 0
    assert fleet.received("deploy") == DEVICES


def test_a_person_at_the_terminal_is_asked_and_the_wave_begins_with_a_yes(fleet: FakeFleet, desk: Desk) -> None:
    desk.plan.write_text(desk.plan.read_text().replace('name = "site"', 'name = "site"\napproval = true'))
    keyboard, terminal = pty.openpty()
    operator = subprocess.Popen(
        desk.command(), stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with operator:
        assert operator.stderr is not None
        question = "wave site waits for approval; begin it? [y/N] "
        assert operator.stderr.read(len(question)) == question
        assert fleet.received("deploy") == CANARIES
        os.write(keyboard, b"y\n")
        assert operator.wait(100) == 0
    for end in (keyboard, terminal):
        os.close(end)
    assert fleet.received("deploy") == DEVICES


def test_who_is_away_gets_nothing_and_is_begun_with_when_it_comes_back(fleet: FakeFleet, desk: Desk) -> None:
    fleet.turn("box-03", is_online=False)
    fleet.turn("box-20", is_online=False)
    desk.write("away-2", "offline = 'skip'\n[success]\npercent = 60\n", timeout_s=6)
    with desk.popen() as operator:
        fleet.wait(lambda: len(fleet.received("deploy")) == 28)
        fleet.turn("box-03", is_online=True)
        fleet.wait(lambda: "box-03" in fleet.received("deploy"))
        assert operator.wait(100) == 0
    assert "box-20" not in fleet.received("deploy")
    (left,) = (device for device in desk.report()["devices"] if device["device"] == "box-20")
    assert left["outcome"] == "skipped"


def test_a_device_that_hangs_is_out_of_time_and_is_told_to_stop(fleet: FakeFleet, desk: Desk) -> None:
    fleet.boxes["box-04"].manner = "hangs"
    desk.write("hang-2", timeout_s=6)
    done = desk.run("--no-wait")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "wave canary: 2 of 3 devices succeeded, 90 % have to" in done.stdout
    fleet.wait(lambda: fleet.received("cancel") == ["box-04"])
    assert fleet.received("deploy") == CANARIES

    assert desk.run("resume").returncode == 0
    done = desk.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert fleet.received("deploy") == DEVICES
    (hung,) = (device for device in desk.report()["devices"] if device["device"] == "box-04")
    assert hung["outcome"] == "timed_out"


def test_a_device_that_stops_serving_the_release_during_the_soak_counts_against_it(
    fleet: FakeFleet, desk: Desk
) -> None:
    desk.plan.write_text(desk.plan.read_text().replace("soak_s = 0", "soak_s = 600"))
    with desk.popen("--json", "--no-wait") as operator:
        assert operator.stdout is not None
        for line in operator.stdout:
            if json.loads(line).get("event") == "wave_complete":
                fleet.serve("box-03", "1")
                break
        assert operator.wait(100) == 3
    assert fleet.received("deploy") == CANARIES
    assert "wave canary: 2 of 3 devices succeeded" in desk.report()["reason"]


def test_a_person_stops_a_rollout_from_another_terminal(fleet: FakeFleet, desk: Desk) -> None:
    desk.plan.write_text(desk.plan.read_text().replace("soak_s = 0", "soak_s = 600"))
    with desk.popen("--json") as operator:
        assert operator.stdout is not None
        next(line for line in operator.stdout if json.loads(line).get("event") == "wave_complete")
        refused = desk.run()
        assert refused.returncode == 2
        assert "is being run by another process here" in refused.stderr
        assert desk.run("abort").returncode == 0
        assert operator.wait(100) == 1
    assert fleet.received("deploy") == CANARIES
    assert desk.report()["reason"] == "a person aborted it"


def test_settings_are_rolled_out_like_models_and_signed_where_there_is_a_key(fleet: FakeFleet, desk: Desk) -> None:
    text = desk.plan.read_text()
    command = '[command]\nname = "set_config"\nconfig = { health = { interval_s = 5 } }\n'
    desk.plan.write_text(text[: text.index("[command]")] + command + text[text.index("[[waves]]") :])
    desk.login += ["--sign-key", str(desk.directory / "operator.key")]
    done = desk.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert fleet.received("set_config") == DEVICES
    assert all("signature" in body for box in fleet.boxes.values() for _, body in box.received)


def test_another_plan_under_the_same_name_is_refused_where_the_record_is(fleet: FakeFleet, desk: Desk) -> None:
    assert desk.run().returncode == 0
    desk.write("kanji-2", "[success]\npercent = 1\n")
    done = desk.run()
    assert done.returncode == 2
    assert "was begun with another plan" in done.stderr
    assert fleet.received("deploy") == DEVICES
