"""``nibblectl`` whose broker dies while it looks: what is shown is marked, and a gap in what comes is told."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.device import ROOT
from tests.e2e.harness.feed import Feed
from tests.e2e.harness.mqtt import Broker, publish
from tests.e2e.harness.terminal import Terminal
from tests.fakes import fleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    broker.start()
    fleet.publish(broker.port, fleet.said("box-1", {"presence": fleet.presence(), "reported": fleet.reported()}))
    yield broker
    broker.stop()


def command(broker: Broker, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "agent.fleet.cli", "--port", str(broker.port), *arguments]


def test_the_live_table_says_that_it_is_old_while_the_broker_is_dead(broker: Broker) -> None:
    terminal = Terminal(command(broker, "devices", "--watch"))
    try:
        terminal.until(b"1 device: 1 online")
        broker.kill()
        terminal.until(f"broker 127.0.0.1:{broker.port} lost since ".encode())
        terminal.until(b"what is below is of before")
        broker.start()
        back = len(terminal.seen)
        fleet.publish(broker.port, fleet.said("box-2", {"presence": fleet.presence()}))
        terminal.until(b"2 devices: 2 online", since=back)
        last = terminal.seen.rpartition(b"2 devices: 2 online")[0].rpartition(b"\x1b[H")[2]
        assert b"lost since" not in last
        terminal.press(b"q")
        assert terminal.end() == 0
    finally:
        terminal.close()


def test_a_gap_in_the_trail_is_told_beside_it(broker: Broker) -> None:
    following = subprocess.Popen(
        command(broker, "--json", "events", "--follow"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    assert following.stderr is not None
    shown, told = Feed(following.stdout, json.loads, "stdout"), Feed(following.stderr, str, "stderr")
    event = json.dumps({"schema": 1, "event": "started"})
    try:
        while not shown.since(0):  # it may not listen yet
            publish(broker.port, "edge/v1/box-1/event", event)
        broker.kill()
        told.wait(lambda line: f"broker 127.0.0.1:{broker.port} is lost: no event is heard" in line)
        broker.start()
        told.wait(lambda line: "is back: events since it was lost are missing here" in line)
        assert all(each["event"] == "started" for each in shown.since(0)), "stdout has events alone"
    finally:
        following.kill()
        following.wait()
