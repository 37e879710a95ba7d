"""``nibblectl`` on a broker that keeps what many devices said: list, live table, one device; every transport."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from agent.fleet.cli import main
from tests.e2e.harness.device import ROOT
from tests.e2e.harness.mqtt import Broker, clear, free_port
from tests.e2e.harness.terminal import Terminal
from tests.e2e.harness.tools import require
from tests.fakes import fleet
from tests.fakes.authority import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

pytestmark = [pytest.mark.e2e]

BOXES = {
    "box-1": {"presence": fleet.presence(), "reported": fleet.reported(), "capabilities": fleet.capabilities()},
    "box-2": {
        "presence": fleet.presence("offline", reason="shutdown"),
        "reported": fleet.reported({"digits": fleet.model(method="int8"), "kanji": fleet.model(version="2")}),
        "capabilities": fleet.capabilities(),
        "op/d-1": {"schema": 1, "id": "d-1", "state": "succeeded", "phase": None, "error": None, "at": fleet.AT},
    },
}
MANY = 3000


class Site:
    """A broker that speaks MQTT on TCP, on WebSocket, and on WebSocket with TLS."""

    def __init__(self, directory: Path) -> None:
        self.ws_port, self.wss_port, self.tls_port = free_port(), free_port(), free_port()
        authority = Authority(directory)
        certificate, key = authority.issue("localhost")
        self.ca_file = authority.file
        secure = f"certfile {certificate}\nkeyfile {key}\n"
        self.broker = Broker(
            directory,
            f"max_queued_messages 5000\nlistener {self.ws_port} 127.0.0.1\nprotocol websockets\n"
            f"listener {self.wss_port} 127.0.0.1\nprotocol websockets\n{secure}"
            f"listener {self.tls_port} 127.0.0.1\n{secure}",
        )

    def run(self, *arguments: str, port: int | None = None) -> Result:
        """Run it in this process: starting Python anew for every look takes longer than the look."""
        return CliRunner().invoke(main, ["--port", str(port or self.broker.port), *arguments], prog_name="nibblectl")

    def command(self, *arguments: str, port: int | None = None) -> list[str]:
        return [sys.executable, "-m", "agent.fleet.cli", "--port", str(port or self.broker.port), *arguments]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require("mosquitto")
    site = Site(tmp_path_factory.mktemp("site"))
    site.broker.start()
    for name, kinds in BOXES.items():
        fleet.publish(site.broker.port, fleet.said(name, kinds))
    yield site
    site.broker.stop()


def test_the_devices_are_listed_with_what_they_serve(site: Site) -> None:
    done = site.run("devices")
    counted = "2 devices: 1 online, 1 offline, health of 1 not heard; models by method: 1 int8, 2 nf4\n"
    assert (done.exit_code, done.stderr) == (0, counted)
    assert [line.split()[:5] for line in done.stdout.splitlines()] == [
        ["device", "presence", "model", "version", "method"],
        ["box-1", "online", "kanji", "1", "nf4"],
        ["box-2", "offline", "digits", "1", "int8"],
        ["box-2", "offline", "kanji", "2", "nf4"],
    ]


def test_programs_get_one_object_a_line_of_those_that_were_asked_for(site: Site) -> None:
    told = [json.loads(line) for line in site.run("devices", "--json").stdout.splitlines()]
    assert [each["device"] for each in told] == ["box-1", "box-2"]
    assert told[1]["reason"] == "shutdown"
    for asked, names in {("--presence", "offline"): ["box-2"], ("--model", "digits"): ["box-2"]}.items():
        found = site.run("devices", *asked, "--json")
        assert [json.loads(line)["device"] for line in found.stdout.splitlines()] == names
    one = site.run("devices", "-d", "box-1", "--json")
    assert [json.loads(line)["device"] for line in one.stdout.splitlines()] == ["box-1"]


def test_a_device_that_was_chosen_before_the_command_is_told_since_the_others_are_left_out(site: Site) -> None:
    done = site.run("--device", "box-1", "devices")
    assert "box-2" not in done.stdout
    assert done.stderr.endswith("; others were left out: --device, NIBBLECTL_DEVICE or the profile asks for box-1\n")


def test_a_device_that_was_chosen_and_that_nobody_knows_is_named(site: Site) -> None:
    done = site.run("--device", "nosuch", "devices")
    assert done.exit_code == 1
    assert "knows no device 'nosuch' under edge/v1: are --device," in done.stderr


def test_without_devices_the_status_is_1_and_the_next_step_is_told(site: Site) -> None:
    done = site.run("--prefix", "acme/v1", "devices")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"no device under acme/v1 on 127.0.0.1:{site.broker.port}\n  are --host, --prefix" in done.stderr


@pytest.mark.parametrize(
    ("asked", "which"),
    [
        (("devices", "--presence", "unknown"), "is unknown"),
        (("devices", "--model", "x", "--presence", "offline"), "serves x and is offline"),
        (("report", "--model", "x"), "reports a model x"),
    ],
)
def test_devices_of_which_none_is_what_was_asked_for_are_counted(
    site: Site, asked: tuple[str, ...], which: str
) -> None:
    done = site.run(*asked)
    assert done.exit_code == 1
    where = f"under edge/v1 on 127.0.0.1:{site.broker.port}"
    assert done.stderr == f"nibblectl: none of 2 devices {where} {which}\n  nibblectl devices shows all of them\n"


@pytest.mark.parametrize("transport", ["websockets", "websockets and TLS", "TLS"])
def test_every_transport_leads_to_the_same_devices(site: Site, transport: str) -> None:
    port = {"websockets": site.ws_port, "websockets and TLS": site.wss_port, "TLS": site.tls_port}[transport]
    options = ["--transport", "websockets"] if "websockets" in transport else []
    if "TLS" in transport:
        options += ["--host", "localhost", "--ca-file", str(site.ca_file)]
    done = site.run(*options, "devices", "--json", port=port)
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


def test_a_port_that_speaks_another_transport_is_named(site: Site) -> None:
    command = site.command("--transport", "websockets", "devices", port=site.broker.port)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4
    assert f"nibblectl: broker 127.0.0.1:{site.broker.port}: " in done.stderr


def test_the_report_is_of_what_the_devices_retain(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "fleet.csv"
    done = site.run("report", "--plot", "agreement", "--csv", str(file))
    assert done.exit_code == 0, done.stderr
    assert "2 devices, 3 models, 3 of them without a decision record" in done.stdout
    assert "agreement, 99.0% to 99.0%" in done.stdout
    assert len(file.read_text().splitlines()) == 4
    told = json.loads(site.run("--json", "report", "--model", "digits").stdout)
    assert (told["models"], told["by_method"][0]["method"]) == (1, "int8")
    assert site.run("report", "--model", "none").exit_code == 1
    nowhere = site.run("report", "--csv", str(tmp_path / "nowhere" / "fleet.csv"))
    assert (nowhere.exit_code, "fleet.csv: No such file or directory" in nowhere.stderr) == (2, True)


def test_one_device_is_shown_with_its_operations(site: Site) -> None:
    done = site.run("show", "box-2")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"box-2 is offline since {fleet.AT}: shutdown"
    assert lines[-1] == f"{fleet.AT} d-1 succeeded"
    assert "methods that work: nf4" in lines
    told = json.loads(site.run("--json", "show", "box-2").stdout)
    assert set(told) == {"presence", "reported", "capabilities", "health", "operations"}
    assert [each["id"] for each in told["operations"]] == ["d-1"]


def test_a_device_that_never_was_is_not_shown(site: Site) -> None:
    done = site.run("show", "box-9")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "knows no device 'box-9' under edge/v1" in done.stderr


def test_health_is_waited_for_no_longer_than_it_takes(site: Site) -> None:
    command = site.command("devices", "--json", "--listen", "100", "--presence", "online")
    listening = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        while listening.poll() is None:
            fleet.publish(site.broker.port, fleet.said("box-1", {"health": fleet.health()}), is_retained=False)
        told = json.loads(listening.communicate()[0])
    finally:
        listening.kill()
    assert (told["device"], told["health"]["status"]) == ("box-1", "ok")


@pytest.fixture
def terminal(site: Site) -> Iterator[Terminal]:
    terminal = Terminal(site.command("devices", "--watch"))
    yield terminal
    terminal.close()


def test_the_live_table_follows_the_devices_until_a_key_ends_it(site: Site, terminal: Terminal) -> None:
    terminal.until(b"2 devices: 1 online, 1 offline")
    fleet.publish(site.broker.port, fleet.said("box-3", {"presence": fleet.presence("offline")}))
    try:
        terminal.until(b"3 devices: 1 online, 2 offline")
        terminal.until(b"box-3")
    finally:
        clear(site.broker.port, "edge/v1/box-3/presence")
    terminal.press(b"q")
    assert terminal.end() == 0


def test_the_live_table_ends_with_ctrl_c(terminal: Terminal) -> None:
    terminal.until(b"2 devices")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0


@pytest.mark.parametrize(
    ("arguments", "last", "head", "left_out"),
    [
        (("devices",), b"shutdown", b"presence", b"version"),
        (("devices", "--watch"), b"shutdown", b"presence", b"version"),
        (("report",), b"estimate of peak", b"hardware unknown, type cnn, method nf4\r\n", b"  hardware"),
    ],
)
def test_a_terminal_of_40_columns_gets_less_and_whole_words(
    site: Site, arguments: tuple[str, ...], last: bytes, head: bytes, left_out: bytes
) -> None:
    terminal = Terminal(site.command(*arguments), columns=40)
    try:
        terminal.until(last)
    finally:
        terminal.close()
    assert head in terminal.seen
    assert left_out not in terminal.seen


@pytest.mark.parametrize("arguments", [("devices", "--watch"), ("--json", "devices", "--watch")])
def test_without_a_terminal_there_is_no_live_table(site: Site, arguments: tuple[str, ...]) -> None:
    done = site.run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--watch draws on a terminal; for programs: nibblectl devices --json" in done.stderr


def test_a_large_fleet_is_listed_whole_where_the_broker_may_queue_that_much(site: Site) -> None:
    topics = [
        f"large/{name}/{kind}" for name in map("box-{:04}".format, range(MANY)) for kind in ("presence", "reported")
    ]
    bodies = {"presence": json.dumps(fleet.presence()), "reported": json.dumps(fleet.reported())}
    fleet.publish(site.broker.port, ((topic, bodies[topic.rpartition("/")[2]].encode()) for topic in topics))
    done = site.run("--prefix", "large", "devices", "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == MANY
    assert all(each["presence"] == "online" and each["models"]["kanji"]["method"] == "nf4" for each in told)
