"""``nibblectl`` as a person types it, against a real broker and a real device: what is printed, and the exit status."""

from __future__ import annotations

import json
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
        self.directory = directory
        self.clock = clock
        self.agent = agent

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent.fleet.cli", *self._login, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


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


def signed(shell: Shell, world: World, sequence: int, **changes: str) -> str:
    """Return a file with a manifest for the checkpoint."""
    body = {"model": "kanji", "version": f"v{sequence}", "sequence": sequence, **changes}
    files = [{"name": "checkpoint_best.pt", **world.checkpoint.reference()}]
    path = shell.directory / f"manifest-{sequence}.json"
    path.write_text(json.dumps(world.signer.seal({**body, "files": files})))
    return str(path)


def test_why_an_operation_waits_is_shown_to_people_and_to_programs(shell: Shell, world: World) -> None:
    tomorrow = (
        (datetime.now(timezone.utc) + timedelta(days=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
    manifest = signed(shell, world, 1, expires=tomorrow)
    why = f"deferred: the clock is not synchronised, and this cannot be judged without: expires {tomorrow}"

    waiting = shell.run("--wait", "2", "deploy", "kanji", manifest, "--method", "nf4")
    first, second, *_again = waiting.stdout.splitlines()
    assert first.endswith(" accepted queued")
    assert second == f"  {why}"
    assert waiting.returncode == 4
    assert f"no word on operation {first.split()[0]} for 2 s; the last one: {why}" in waiting.stderr

    told = shell.run("--json", "--wait", "2", "deploy", "kanji", manifest, "--method", "nf4")
    assert told.returncode == 4
    assert {json.loads(line)["detail"] for line in told.stdout.splitlines()} == {why}
