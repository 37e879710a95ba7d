"""The shell scripts of ``deploy/examples`` where something is missing, and what is left when they are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.feed import Feed
from tests.e2e.harness.mqtt import END_S, Broker
from tests.e2e.harness.tools import require
from tests.fakes import fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e]

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
SCRIPTS = EXAMPLES / "mosquitto_pub"
DISCOVER = EXAMPLES / "home-assistant" / "discover.sh"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The options of a broker that knows ``box-1`` alone, where mosquitto's clients look for them."""
    require("jq")
    config = tmp_path_factory.mktemp("config")
    broker = Broker(tmp_path_factory.mktemp("broker"))
    broker.start()
    kinds = {"presence": fleet.presence(), "capabilities": fleet.capabilities()}
    fleet.publish(broker.port, fleet.said("box-1", kinds))
    for program in ("mosquitto_pub", "mosquitto_sub"):
        (config / program).write_text(f"-h 127.0.0.1\n-p {broker.port}\n")
    yield {**os.environ, "XDG_CONFIG_HOME": str(config), "TIMEOUT": "150", "KNOWN_S": "1"}
    broker.stop()


def run(environment: dict[str, str], script: str, *arguments: str) -> tuple[int, str, str]:
    command = [str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2 * END_S, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_device_that_nobody_knows_gets_no_command(environment: dict[str, str], tmp_path: Path) -> None:
    told = "box-9: nothing on edge/v1/box-9/presence: are the name and PREFIX right, and may this login read it?\n"
    status, shown, why = run(environment, "set-method.sh", "box-9", "kanji", "nf4")
    assert (status, shown, why.endswith(told)) == (3, "", True), why
    file = tmp_path / "file"
    file.touch()
    deploy = ("box-9", "kanji", str(file), "https://h.example/x", str(file), "1")
    status, shown, why = run(environment, "deploy.sh", *deploy)
    assert (status, shown, why.endswith(told)) == (3, "", True), why
    assert run(environment, "present.sh", "box-1") == (0, "", "")


def test_what_cannot_be_read_or_counted_is_named_before_anything_is_sent(
    environment: dict[str, str], tmp_path: Path
) -> None:
    file, gone = tmp_path / "file", tmp_path / "gone"
    file.touch()
    for checkpoint, key in ((gone, file), (file, gone)):
        told = run(environment, "deploy.sh", "box-1", "kanji", str(checkpoint), "https://h.example/x", str(key), "1")
        assert told == (2, "", f"deploy: {gone}: no file that can be read\n")
    told = run(environment, "deploy.sh", "box-1", "kanji", str(file), "https://h.example/x", str(file), "v1")
    assert told == (2, "", "deploy: SEQUENCE v1 is no number\n")


def test_who_stops_discovery_leaves_no_shell_behind(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [str(DISCOVER)], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    feed = Feed(process.stdout, str, "discover.sh")
    try:
        feed.wait(lambda line: line == "told Home Assistant of box-1\n", timeout_s=3 * END_S)
        assert len(_members(process.pid)) > 1, "the subscriber is one"
        process.terminate()
        assert process.wait(END_S) == 143
        feed.join()  # whoever is left would hold the pipe open
        end_s = time.monotonic() + END_S
        while (left := _members(process.pid)) and time.monotonic() < end_s:
            time.sleep(0.05)  # the subscriber was told to end, and says goodbye to the broker
        assert left == []
    finally:
        for each in _members(process.pid):
            os.kill(each, signal.SIGKILL)


def _members(session: int) -> list[int]:
    """Return the processes of a session that are not gone."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            found += [int(entry.name)] if int(of) == session and state != "Z" else []
    return found
