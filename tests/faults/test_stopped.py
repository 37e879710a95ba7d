"""Processes that are stopped: alive to the kernel, dead to everybody who waits for them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.inference import load
from tests.e2e.harness.operator import MODEL
from tests.faults.box import Box, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.processes import Process
    from tests.e2e.harness.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SILENCE_S = 3.0
REPLACED_S = 25.0
"""Silence, a question that was under way, and the start of another server while two cores are busy."""
WATCHDOG_S = 6.0


class Manager:
    """The service manager's end of ``sd_notify``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def hears(self, timeout_s: float) -> bool:
        """Return whether the watchdog is fed within that time, from now on."""
        self._socket.settimeout(0.0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(4096)
        ends_at = time.monotonic() + timeout_s
        with contextlib.suppress(TimeoutError):
            while (left_s := ends_at - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                if b"WATCHDOG=1" in self._socket.recv(4096):
                    return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    manager = Manager(tmp_path_factory.mktemp("run") / "notify")
    yield manager
    manager.close()


@pytest.fixture(scope="module")
def box(world: World, manager: Manager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    told = {"NIBBLED_SERVING__SILENCE_S": str(SILENCE_S), "NOTIFY_SOCKET": str(manager.path)}
    told["WATCHDOG_USEC"] = str(int(WATCHDOG_S * 1e6))
    box = Box("stopped", tmp_path_factory.mktemp("stopped"), world, **told)
    box.start()
    box.serve()
    yield box
    box.agent.close()


@contextlib.contextmanager
def stopped(process: Process) -> Iterator[None]:
    """Stop a process; afterwards it goes on if it is still there."""
    process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send(signal.SIGCONT)
        process.close()


def test_a_stopped_server_is_replaced_and_every_request_ends(box: Box, world: World) -> None:
    before, mark, server = box.answers(), box.operator.mark(), box.server()
    with load(box.agent.url, MODEL, world.images.inputs[:1]) as statuses:
        eventually(lambda: box.answers() == before, "the model answers under load")
        began = time.monotonic()
        with stopped(server):
            event = box.operator.event(lambda body: body["event"] == "server_lost", since=mark)
            told_after_s = time.monotonic() - began
            eventually(lambda: box.answers() == before, "the model answers again", REPLACED_S)
            assert server.has_ended(0.0)
    assert "gave no answer for" in event["detail"]
    assert SILENCE_S - 1 <= told_after_s <= REPLACED_S
    # The one that each of two clients had under way was lost with its server, all others were answered.
    assert statuses["200"] > 2
    assert sum(count for status, count in statuses.items() if status != "200") <= 2
    assert box.status()["mode"] == "current"


@pytest.mark.minutes
def test_health_names_a_server_that_does_not_answer(box: Box) -> None:
    version, server, mark = box.answers(), box.server(), box.operator.mark()
    with stopped(server):
        health = box.world.subscriber.wait(
            box.operator.topic("health"), lambda body: body["status"] == "failing", since=mark, timeout_s=REPLACED_S
        )
        eventually(lambda: box.answers() == version, "the model answers again", REPLACED_S)
    assert any("the server does not answer" in reason for reason in health["reasons"])


@pytest.mark.minutes
def test_a_server_that_stops_under_a_new_model_on_trial_comes_back_with_the_old_one(box: Box) -> None:
    version, method, server = box.answers(), box.operator.served()["method"], box.server()
    operation = box.switch("fp4", soak_s=120)
    box.operator.reaches(operation, "trial")
    with stopped(server):
        report = box.operator.result(operation)
        eventually(lambda: box.answers() == version, "the model answers again", REPLACED_S)
    assert (report["state"], report["error"]["code"]) == ("rolled_back", "trial_failed")
    assert box.operator.served()["method"] == method


def test_a_stopped_builder_is_ended_by_the_operation_s_time(box: Box) -> None:
    version = box.answers()
    box.operator.result(box.operator.send("set_config", config={"deployment": {"total_s": 8.0}}))
    try:
        operation = box.switch("fp4-dq")
        box.operator.reaches(operation, "building")
        builder = box.builder()
        with stopped(builder):
            report = box.operator.result(operation)
            assert builder.has_ended(10.0)
    finally:
        box.operator.result(box.operator.send("set_config", config={"deployment": {"total_s": None}}))
    assert (report["state"], report["error"]["code"]) == ("timed_out", "timed_out")
    assert "8 s" in report["error"]["detail"]
    assert box.answers() == version
    box.keeps_nothing_half_made()


def test_the_watchdog_is_fed_through_a_build_and_by_no_agent_that_is_stopped(box: Box, manager: Manager) -> None:
    version, server = box.answers(), box.server()
    assert manager.hears(WATCHDOG_S)
    operation = box.switch("int8")
    box.operator.reaches(operation, "building")
    assert manager.hears(WATCHDOG_S)
    assert box.operator.result(operation)["state"] == "succeeded"
    os.kill(box.agent.pid, signal.SIGSTOP)
    try:
        manager.hears(0.1)
        assert not manager.hears(WATCHDOG_S + SILENCE_S)
        assert box.answers() == version, "the server answers without its supervisor"
    finally:
        os.kill(box.agent.pid, signal.SIGCONT)
    assert manager.hears(WATCHDOG_S)
    assert box.status()["server_pid"] == server.pid, "its own absence is not the server's"
    server.close()
