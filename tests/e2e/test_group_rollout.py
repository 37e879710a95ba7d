"""A group's document that devices join by themselves, and its halt, over a real broker with nobody else connected."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.adapters.mqtt_operator import Messages
from agent.contract.staged import position
from agent.contract.wire import rfc3339
from tests.e2e.harness.device import ROOT
from tests.e2e.harness.mqtt import HOST, clear, publish
from tests.e2e.harness.tools import require
from tests.simulation.campaign import CONTENT, FIRST, GROUP, MEMORY, MODEL, NEXT, URL, converge
from tests.simulation.device import PREFIX
from tests.simulation.fleet import Fleet, fleet
from tests.simulation.group import SHARES, inside, roll_out, want

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

COUNT, TIMEOUT_S = 12, 120.0
HALT = f"{PREFIX}/_group/{GROUP}/halt"


def start(found: Fleet, disks: str, bad: Sequence[str] = (), version: str = "5") -> None:
    told = {"files": {URL: CONTENT.hex()}, "bad": list(bad), "method": NEXT, "version": version}
    found.start(Path(disks), groups=[GROUP], interval_s=30.0, soak_s=0.1, **told)
    found.observer.wait(
        lambda: found.online() and all(name in found.observer.reported for name in found.names), TIMEOUT_S, "all there"
    )


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Fleet]:
    """A dozen devices that serve the model by the first method, as their group wants."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as disks, fleet(COUNT, tmp_path) as found:
        start(found, disks)
        converge(found, 1, FIRST)
        yield found


def methods(found: Fleet, names: Iterable[str]) -> set[str]:
    return {found.observer.reported[name]["models"][MODEL]["method"] for name in names}


def standing(found: Fleet, name: str) -> Any:
    return ((found.observer.reported[name].get("desired") or {}).get("groups") or {}).get(GROUP, {})


def all_stand(found: Fleet, names: Iterable[str], state: str) -> None:
    """Wait until each of the devices says that it stands like that."""
    chosen = list(names)
    found.observer.wait(
        lambda: all(standing(found, name).get("state") == state for name in chosen), TIMEOUT_S, f"all {state}"
    )


def ask(found: Fleet, names: Iterable[str]) -> None:
    """Have devices report once more, and wait until each has."""
    asked, number = datetime.now(timezone.utc), time.monotonic_ns()
    for name in names:
        body = {"schema": 1, "id": f"ask-{number}"}
        publish(found.broker.port, f"{PREFIX}/{name}/cmd/status", json.dumps(body))
    found.observer.wait(
        lambda: all(found.observer.reported[name]["at"] > rfc3339(asked) for name in names), TIMEOUT_S, "all asked"
    )


def halt(found: Fleet, **fields: Any) -> None:
    publish(found.broker.port, HALT, json.dumps({"schema": 1, **fields}), is_retained=True)


def test_three_stages_converge_with_no_operator_connected(small: Fleet) -> None:
    figures = roll_out(small, 2, stage_s=4.0)
    expected = [sum(position(f"{GROUP}-2", name) < share for name in small.names) for share in SHARES]
    assert all(count <= most for count, most in zip(figures.inside, expected, strict=False))
    assert methods(small, small.names) == {NEXT}
    assert {standing(small, name)["state"] for name in small.names} == {"joined"}


def test_a_halt_in_the_middle_leaves_the_others_on_the_model_of_before(small: Fleet) -> None:
    rollout_id, second_s = "halves", 15.0
    first = {name for name in small.names if position(rollout_id, name) < 50}
    others = set(small.names) - first
    assert first
    assert others
    begin = datetime.now(timezone.utc)
    stages = [{"percent": 50, "after_s": 0}, {"percent": 100, "after_s": second_s}]
    want(small, 2, NEXT, {"id": rollout_id, "start": rfc3339(begin), "stages": stages})
    small.observer.wait(lambda: inside(small, 2) == first, TIMEOUT_S, "the first half")
    halt(small, generation=2, reason="wrong labels")
    all_stand(small, others, "halted")
    time.sleep(max(0.0, begin.timestamp() + second_s + 2.0 - time.time()))
    ask(small, small.names)
    assert (methods(small, first), methods(small, others)) == ({NEXT}, {FIRST})
    assert {standing(small, name)["halt"]["reason"] for name in others} == {"wrong labels"}
    clear(small.broker.port, HALT)
    small.observer.wait(lambda: len(inside(small, 2)) == COUNT, TIMEOUT_S, "all, once it was lifted")
    assert methods(small, small.names) == {NEXT}


@pytest.fixture
def command(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which ``nibblectl`` is what is tested here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nibblectl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m agent.fleet.cli "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def test_the_rule_of_the_page_halts_a_group_when_an_operation_of_it_fails(
    tmp_path: Path, command: dict[str, str]
) -> None:
    """The very lines of docs/fleet.md, for the group of this test."""
    require("jq")
    page = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
    (rule,) = re.findall(r"^```sh\n(nibblectl --json events --follow .*?) &\n```$", page, re.MULTILINE | re.DOTALL)
    with tempfile.TemporaryDirectory(dir=MEMORY) as disks, fleet(COUNT, tmp_path) as found:
        bad = next(name for name in found.names if position("halves", name) < 50)
        start(found, disks, bad=[bad])
        converge(found, 1, FIRST)
        environment = {**command, "NIBBLECTL_PORT": str(found.broker.port)}
        text = rule.replace("lab", GROUP)
        listener = subprocess.Popen(["sh", "-c", text], env=environment, text=True, start_new_session=True)
        try:
            await_listener(found)
            clear(found.broker.port, HALT)
            begin = datetime.now(timezone.utc)
            stages = [{"percent": 50, "after_s": 0}, {"percent": 100, "after_s": 3600}]
            want(found, 2, NEXT, {"id": "halves", "start": rfc3339(begin), "stages": stages})
            others = [name for name in found.names if position("halves", name) >= 50]
            all_stand(found, others, "halted")
            assert standing(found, others[0])["halt"]["reason"].startswith(f"{bad} {GROUP}-2-{MODEL} failed")
            assert methods(found, others) == {FIRST}
        finally:
            os.killpg(listener.pid, signal.SIGTERM)
            listener.wait(10.0)


def await_listener(found: Fleet) -> None:
    """Wait until the rule acts on what a device that nobody has says, and has acted on all of it, in its order."""
    failed = {"schema": 1, "event": "operation_ended", "state": "failed"}
    with Messages(HOST, found.broker.port) as messages, messages.hear(HALT) as inbox:
        heard = b""
        for number in itertools.count():
            operation = f"{GROUP}-0-{number}-last"
            publish(found.broker.port, f"{PREFIX}/nobody/event", json.dumps({**failed, "id": operation}))
            with contextlib.suppress(queue.Empty):
                heard = inbox.get(timeout=1.0).payload
                break
        while operation.encode() not in heard:
            heard = inbox.get(timeout=TIMEOUT_S).payload


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_device_that_was_off_and_comes_back_under_a_halt_does_not_start(tmp_path: Path, version: str) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as disks, fleet(2, tmp_path) as found:
        start(found, disks, version=version)
        converge(found, 1, FIRST)
        found.stop()
        found.processes.clear()
        want(found, 2, NEXT)  # their sessions hold it, and the halt behind it
        halt(found, reason="stop")
        found.observer.reported.clear()
        start(found, disks, version=version)
        all_stand(found, found.names, "halted")
        ask(found, found.names)
        assert methods(found, found.names) == {FIRST}
        found.stop()
        found.processes.clear()
        clear(found.broker.port, HALT)
        start(found, disks, version=version)
        found.observer.wait(lambda: len(inside(found, 2)) == 2, TIMEOUT_S, "all, once it was lifted")
        assert methods(found, found.names) == {NEXT}
