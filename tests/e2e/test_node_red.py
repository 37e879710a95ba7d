"""The flow for Node-RED, in a real Node-RED from npm, beside a small simulated fleet of which some devices fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.feed import Feed
from tests.e2e.harness.mqtt import HOST, Subscriber, clear, end, free_port, publish
from tests.simulation.campaign import CONTENT, FIRST, GROUP, MEMORY, MODEL, NEXT, URL, converge
from tests.simulation.device import PREFIX
from tests.simulation.fleet import Fleet, fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FLOW = ROOT / "deploy" / "examples" / "node-red" / "flow.json"
INSTALLED = ROOT / ".node-red" / "node_modules" / "node-red" / "red.js"
NODE = shutil.which("node")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        NODE is None or not INSTALLED.exists(), reason="no Node-RED: make test-node-red installs it and runs this"
    ),
]
HALT = f"{PREFIX}/_group/{GROUP}/halt"
COUNT, BAD, MOST = 5, ("sim-0000", "sim-0002", "sim-0003"), 2
START_S = 120.0


@pytest.fixture
def some_fail(tmp_path: Path) -> Iterator[Fleet]:
    """Devices that serve a model, of which more than the flow bears fail at the next method."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as disks, fleet(COUNT, tmp_path) as found:
        files = {URL: CONTENT.hex()}
        found.start(Path(disks), groups=[GROUP], files=files, bad=list(BAD), method=NEXT, interval_s=5.0, soak_s=0.1)
        found.observer.wait(lambda: found.online() and len(found.observer.reported) == COUNT, START_S, "all there")
        converge(found, 1, FIRST)
        yield found


class NodeRed:
    """Node-RED with the flow, on a free port and with folders of its own."""

    def __init__(self, directory: Path, broker_port: int) -> None:
        assert NODE is not None
        self._port = free_port()
        flow = directory / "flow.json"
        shutil.copy(FLOW, flow)
        environment = {
            **os.environ,
            "FLEET_BROKER": HOST,
            "FLEET_PORT": str(broker_port),
            "FLEET_HALT_AFTER": str(MOST),
            "FLEET_GROUP": GROUP,
        }
        options = ["--userDir", str(directory / "user"), "--port", str(self._port), "-D", f"uiHost={HOST}"]
        self._process = subprocess.Popen(
            [NODE, str(INSTALLED), *options, str(flow)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        self.log = Feed(self._process.stdout, str, "node-red")

    def press(self, button: str) -> None:
        """Press an inject node's button, as a person does in the editor."""
        url = f"http://{HOST}:{self._port}/inject/{button}"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=20):
            pass

    def close(self) -> None:
        end(self._process)
        self.log.join()


def switch(found: Fleet, device: str, operation: str) -> None:
    body = {"schema": 1, "id": operation, "model": MODEL, "method": NEXT}
    publish(found.broker.port, f"{PREFIX}/{device}/cmd/set_method", json.dumps(body))


def ended(found: Fleet, device: str, operation: str) -> None:
    def is_over() -> bool:
        return found.observer.operations.get((device, operation), {}).get("state") not in (None, "accepted", "running")

    found.observer.wait(is_over, START_S, f"the end of {operation} on {device}")


def test_the_flow_halts_a_group_of_which_too_many_fail_and_a_person_lifts_it(some_fail: Fleet, tmp_path: Path) -> None:
    subscriber = Subscriber(some_fail.broker.port)
    node_red = NodeRed(tmp_path, some_fail.broker.port)
    try:
        node_red.log.wait(lambda line: "Connected to broker" in line, timeout_s=START_S)
        node_red.log.wait(lambda line: f"topic: '{some_fail.names[0]}'" in line, timeout_s=START_S)
        for device in BAD[:MOST]:
            switch(some_fail, device, "s-1")
            ended(some_fail, device, "s-1")
        switch(some_fail, "sim-0001", "s-1")
        ended(some_fail, "sim-0001", "s-1")
        assert subscriber.on(HALT) == [], "as many as are borne"

        switch(some_fail, BAD[MOST], "s-1")
        halt = subscriber.wait(HALT)
        assert halt == {
            "schema": 1, "generation": 1, "reason": f"3 devices failed within 60 min: {', '.join(BAD)}",
        }  # fmt: skip
        mark = subscriber.mark()
        node_red.press("lift")
        subscriber.wait_text(lambda message: (message.topic, message.text) == (HALT, ""), since=mark)

        switch(some_fail, BAD[0], "s-2")
        ended(some_fail, BAD[0], "s-2")
        publish(some_fail.broker.port, "harness/after", "{}")
        subscriber.wait("harness/after")
        assert subscriber.on(HALT, since=mark) == [], "what had failed before it was lifted does not count again"
    finally:
        node_red.close()
        subscriber.close()
        clear(some_fail.broker.port, HALT)
