"""How the adapters of the two children tell what became of them, with real children."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from agent.adapters.builder import BuilderProcess
from agent.adapters.processes import ending
from agent.adapters.server import ServerProcess
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.contract.errors import ErrorCode
from agent.deployment.ports import InterruptedStepError, StepError
from agent.deployment.runner import WorkWatch
from tests.e2e.harness.processes import descendants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    StartServer = Callable[..., ServerProcess]

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="the child itself needs torch")


def silent(_done: int, _total: int | None, _unit: str) -> None:
    """Progress is not what these tests are about."""


@pytest.fixture
def exits() -> list[str]:
    return []


@pytest.fixture
def server(tmp_path: Path, exits: list[str]) -> Iterator[StartServer]:
    path = tmp_path / "control.sock"
    http, control = listen_tcp("127.0.0.1", 0), listen_unix(path)
    made: list[ServerProcess] = []

    def make(*options: str, start_timeout_s: float = 60.0) -> ServerProcess:
        made.append(
            ServerProcess(
                http,
                control,
                path,
                listen=listen_unix,
                options=options,
                on_exit=exits.append,
                start_timeout_s=start_timeout_s,
            )
        )
        return made[-1]

    yield make
    for process in made:
        process.stop(drain_s=1.0)
    http.close()
    control.close()


def test_a_server_that_ends_while_starting_is_told_and_counts_as_a_crash(server: StartServer, exits: list[str]) -> None:
    with pytest.raises(StepError, match="exited with status 2 while starting") as caught:
        server("--no-such-option").restore({})
    assert caught.value.code is ErrorCode.LOAD_FAILED
    assert exits == ["exited with status 2 while starting"]


def test_a_server_that_gives_no_answer_is_killed_and_counts_as_a_crash(server: StartServer, exits: list[str]) -> None:
    process = server("--device", "cpu", start_timeout_s=0.0)
    with pytest.raises(StepError, match="gave no answer in 0 s"):
        process.restore({})
    assert process.pid is None
    assert len(exits) == 1


@needs_torch
def test_a_model_that_the_server_does_not_hold_can_be_undeployed(server: StartServer) -> None:
    server("--device", "cpu").undeploy("kanji")


@needs_torch
def test_who_waits_when_the_agent_ends_is_answered_and_who_comes_later_is_refused(server: StartServer) -> None:
    process = server("--device", "cpu")
    process._ensure_running()  # it is not open yet: what was served is being loaded
    address = process._sockets["--http-fd"].getsockname()
    waiting = [http.client.HTTPConnection(address[0], address[1], timeout=20) for _ in range(4)]
    for each in waiting:
        each.request("GET", "/v2/health/ready")
    process.stop(drain_s=2.0)
    for each in waiting:
        with contextlib.closing(each), each.getresponse() as reply:
            assert (reply.status, reply.getheader("connection")) == (503, "close")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=20)


@needs_torch
def test_a_builder_whose_result_nobody_wants_is_killed() -> None:
    watch = WorkWatch(silent)
    job = {"job": "probe", "methods": ["nf4"]}
    threading.Timer(0.3, watch.interrupt).start()
    with pytest.raises(InterruptedStepError):
        BuilderProcess().build(job, watch)
    assert list(descendants(os.getpid(), "agent.quantization")) == []


@needs_torch
def test_each_child_has_a_session_of_its_own_which_no_terminal_interrupts(server: StartServer) -> None:
    sessions: list[int] = []

    class Looking(WorkWatch):
        def check(self) -> None:
            sessions.extend(os.getsid(pid) for pid in descendants(os.getpid(), "agent.quantization"))
            raise InterruptedStepError

    with pytest.raises(InterruptedStepError):
        BuilderProcess().build({"job": "self_test"}, Looking(silent))
    process = server("--device", "cpu")
    process._ensure_running()
    assert process.pid is not None
    sessions.append(os.getsid(process.pid))
    assert len(sessions) == 2
    assert os.getsid(0) not in sessions


def test_the_end_of_a_child_is_said_in_words() -> None:
    assert ending(3) == "exited with status 3"
    assert ending(-signal.SIGKILL) == "was killed by SIGKILL"


def test_a_control_path_that_is_too_long_is_refused_without_leaving_a_socket(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        listen_unix(tmp_path / ("x" * 120))


@needs_torch
def test_a_control_socket_whose_name_was_deleted_is_there_again_for_the_next_server(
    server: StartServer, tmp_path: Path
) -> None:
    process = server("--device", "cpu", start_timeout_s=20.0)
    process.restore({})
    (tmp_path / "control.sock").unlink()
    assert process._child is not None
    process._child.kill()
    process._child.wait()
    process.restore({})
    assert process.status()["pid"] == process.pid
