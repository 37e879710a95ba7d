"""``nibblectl`` as a person types it, against a real broker and a real device: what is printed, and the exit status."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.clocked_agent import MODULE, Clock
from tests.e2e.harness.device import ROOT, Agent
from tests.e2e.harness.operator import Operator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DEVICE = "operated"


class Shell:
    """A person's shell, and the device that is meant."""

    def __init__(self, port: int, directory: Path, clock: Clock, agent: Agent) -> None:
        self._login = ["--port", str(port), "--device", DEVICE]
        self._sequence = itertools.count(1)
        self.directory = directory
        self.clock = clock
        self.agent = agent

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent.fleet.cli", *self._login, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "agent.fleet.cli", *self._login, *arguments]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def signed(self, world: World, **changes: str) -> str:
        """Return a file with a manifest for the checkpoint."""
        sequence = next(self._sequence)
        body = {"model": "kanji", "version": f"v{sequence}", "sequence": sequence, **changes}
        files = [{"name": "checkpoint_best.pt", **world.checkpoint.reference()}]
        path = self.directory / "manifest.json"
        path.write_text(json.dumps(world.signer.seal({**body, "files": files})))
        return str(path)


@pytest.fixture(scope="module")
def shell(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp(DEVICE)
    clock = Clock(directory)
    clock.move_by(0.0)
    agent = Agent(DEVICE, directory, world.broker.port, world.keys_dir, MODULE, environment=clock.environment)
    agent.start()
    Operator(DEVICE, world.broker.port, world.subscriber, world.signer, world.dataset).await_online()
    yield Shell(world.broker.port, directory, clock, agent)
    agent.close()


@pytest.fixture(scope="module")
def serving(shell: Shell, world: World) -> Shell:
    """The shell of a device that serves a model, and whose clock is set."""
    shell.clock.discipline(is_set=True)
    done = shell.run("deploy", "kanji", shell.signed(world), "--method", "nf4")
    assert done.returncode == 0, done.stdout + done.stderr
    return shell


def test_why_an_operation_waits_is_shown_to_people_and_to_programs(shell: Shell, world: World) -> None:
    tomorrow = (
        (datetime.now(timezone.utc) + timedelta(days=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
    shell.clock.discipline(is_set=False)
    manifest = shell.signed(world, expires=tomorrow)
    why = (
        f"deferred: the clock is not synchronised, and this cannot be judged without: expires {tomorrow}; "
        "it goes on when the clock is set; what has no date need not wait"
    )

    waiting = shell.run("--wait", "2", "deploy", "kanji", manifest, "--method", "nf4")
    first, second, *_again = waiting.stdout.splitlines()
    assert first.endswith(" accepted queued")
    assert second == f"  {why}"
    assert waiting.returncode == 4
    assert f"no word on operation {first.split()[0]} for 2 s; the last one: {why}" in waiting.stderr

    told = shell.run("--json", "--wait", "2", "deploy", "kanji", manifest, "--method", "nf4")
    assert told.returncode == 4
    assert {json.loads(line)["detail"] for line in told.stdout.splitlines()} == {why}


def test_a_stopped_look_says_how_to_look_again_and_what_waited_is_followed_to_its_end(
    shell: Shell, world: World
) -> None:
    shell.clock.discipline(is_set=False)
    manifest = shell.signed(world, not_before="2026-01-01T00:00:00Z")
    operation = shell.run("--wait", "0", "deploy", "kanji", manifest, "--method", "nf4").stdout.strip()
    with shell.popen("follow", operation) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert watching.stdout.readline() == f"{operation} accepted queued\n"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30.0) == 130
        told = watching.stderr.read()
    assert told.startswith(f"nibblectl: {operation} goes on without being watched\n")
    assert f"nibblectl follow {operation}" in told

    shell.clock.discipline(is_set=True)
    followed = shell.run("follow", operation)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    ended = followed.stdout.splitlines()
    assert f"{operation} succeeded" in ended
    assert any(line.startswith("  nf4 ") and "asked for by name" in line for line in ended)


def test_the_status_is_a_few_lines_for_people_and_everything_for_programs(serving: Shell) -> None:
    told = serving.run("status")
    assert told.returncode == 0
    assert told.stdout.startswith(f"{DEVICE} is online, nibbled ")
    assert re.search(r"^kanji v\d as nf4: serving since ", told.stdout, re.MULTILINE)
    assert len(told.stdout.splitlines()) < 15
    found = json.loads(serving.run("--json", "status").stdout)
    assert set(found) == {"presence", "reported", "capabilities", "health", "operations"}
    assert found["reported"]["models"]["kanji"]["method"] == "nf4"


def test_an_operation_that_fails_is_status_1_and_an_unknown_one_is_called_that(serving: Shell) -> None:
    failed = serving.run("rollback", "digits")
    assert failed.returncode == 1
    assert "  unknown_model: no model 'digits' is served here; served: kanji\n  hint: deploy it" in failed.stdout
    unknown = serving.run("follow", "deploy-never")
    assert (unknown.returncode, unknown.stdout) == (4, "")
    assert f"{DEVICE} says nothing of an operation deploy-never: is the id right?" in unknown.stderr


def test_settings_are_changed_by_name_shown_and_taken_back(serving: Shell) -> None:
    changed = serving.run("config", "health.interval_s=2", "memory.reserve=65MiB")
    assert changed.returncode == 0, changed.stdout + changed.stderr
    assert sorted(serving.run("config").stdout.splitlines()) == [
        "health.interval_s=2.0",
        f"memory.reserve={65 * 2**20}",
    ]
    wrong = serving.run("config", "health.interval_s=never")
    assert (wrong.returncode, "bad_request" in wrong.stdout) == (1, True)
    assert serving.run("config", "health.interval_s=", "memory.reserve=").returncode == 0
    assert json.loads(serving.run("--json", "config").stdout) == {}


def test_the_log_comes_by_level_and_by_operation(serving: Shell) -> None:
    operation = json.loads(serving.run("--json", "--no-wait", "rollback", "digits").stdout)["id"]
    assert serving.run("follow", operation).returncode == 1
    told = serving.run("logs", "--since", "1h", "--id", operation, "--json")
    assert told.returncode == 0, told.stderr
    entries = [json.loads(line) for line in told.stdout.splitlines()]
    assert "command" in {entry["event"] for entry in entries}
    assert {entry["id"] for entry in entries} == {operation}
    assert re.search(rf" info command .*id={operation}", serving.run("logs", "--id", operation).stdout)
    assert serving.run("logs", "--id", operation, "--level", "critical").stdout == ""


def test_methods_are_compared_on_the_device_and_shown_as_a_table(serving: Shell) -> None:
    done = serving.run("compare", "kanji", "nf4", "int8")
    assert done.returncode == 0, done.stdout + done.stderr
    head, nf4, int8 = done.stdout.splitlines()[-3:]
    assert head.split() == ["method", "fits", "takes", "agrees", "accuracy", "p50", "passes", "what"]
    assert [line.split()[:2] for line in (nf4, int8)] == [["nf4", "yes"], ["int8", "yes"]]


def test_what_happened_and_what_happens_is_shown(serving: Shell) -> None:
    with serving.popen("events", "--follow", "--event", "command_rejected", "--count", "1", "--json") as following:
        for _ in range(10):  # the trail is not kept: the first commands may come before somebody listens
            if following.poll() is not None:
                break
            assert serving.run("--no-wait", "rollback", "digits").returncode == 0
        following.terminate()
        assert following.stdout is not None
        event = json.loads(following.stdout.read())
    assert (event["device"], event["event"], event["command"]) == (DEVICE, "command_rejected", "rollback")
    lines = serving.run("events").stdout.splitlines()
    assert any(re.search(rf" {DEVICE} rollback-\w+ rollback digits \w+ unknown_model: ", line) for line in lines)


def test_a_model_is_asked_through_the_device_s_own_port(serving: Shell) -> None:
    url = ("--url", serving.agent.url)
    done = serving.run("infer", "kanji", "--zeros", *url)
    assert done.returncode == 0, done.stderr
    model, output, row = done.stdout.splitlines()
    assert model.startswith("kanji v")
    assert re.fullmatch(r"\S+ FP32 \[1, 208\]", output)
    assert row.startswith("  row 0: class ")
    unknown = serving.run("infer", "digits", "--zeros", *url)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "HTTP 404: " in unknown.stderr
    nobody = serving.run("infer", "kanji", "--zeros", "--url", "http://127.0.0.1:1")
    assert (nobody.returncode, "Connection refused" in nobody.stderr) == (4, True)


def test_the_device_shows_itself_with_health_and_hardware(serving: Shell) -> None:
    told = json.loads(serving.run("show", DEVICE, "--listen", "60", "--json").stdout)
    assert told["health"]["status"] in ("ok", "degraded")
    assert "hardware" in told["capabilities"]
    report = json.loads(serving.run("report", "--json").stdout)
    (group,) = [each for each in report["by_method"] if each["method"] == "nf4"]
    assert group["figures"]["latency_p50_ms"]["count"] == 1
    assert group["figures"]["peak_error"]["count"] == 1


def test_a_device_that_never_was_is_told_at_once_and_is_sent_nothing(shell: Shell, world: World) -> None:
    done = shell.run("--device", "operateed", "undeploy", "kanji")
    assert (done.returncode, done.stdout) == (4, "")
    assert f"the broker 127.0.0.1:{world.broker.port} knows no device 'operateed' under edge/v1" in done.stderr
    assert [each for each in world.subscriber.all() if each.topic.startswith("edge/v1/operateed/")] == []


def test_a_device_that_is_away_is_told_and_the_command_waits_for_it(serving: Shell, world: World) -> None:
    mark = world.subscriber.mark()
    serving.agent.terminate()
    world.subscriber.wait(f"edge/v1/{DEVICE}/presence", lambda body: body["state"] == "offline", since=mark)
    sent = serving.run("--wait", "0", "undeploy", "kanji")
    assert sent.returncode == 0
    assert sent.stderr.startswith(f"nibblectl: {DEVICE} is offline since ")
    assert sent.stderr.endswith(": shutdown; the broker keeps commands until it is back\n")
    assert serving.run("status").stdout.startswith(f"{DEVICE} is offline since ")
    serving.agent.start()
    assert serving.run("follow", sent.stdout.strip()).stdout.endswith(" succeeded\n")
