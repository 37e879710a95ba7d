"""An agent that is stopped while it restores its models ends their loading; nothing of that has failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from agent.adapters import server as adapter
from agent.adapters.control import ControlError
from agent.adapters.server import ServerProcess
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.contract.errors import ErrorCode
from agent.deployment.models import Release, Served
from agent.deployment.ports import RestoreError, StepError
from tests.fakes.box import Box

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("is_stopping", [False, True])
def test_a_restore_that_a_stop_cuts_short_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_stopping: bool
) -> None:
    box = Box(tmp_path)
    monkeypatch.setattr(box.server, "restore", _fail)
    if is_stopping:
        box.keeper.stop()
    with capture_logs() as lines:
        box.keeper.restore("boot")
        box.runner.pump()
    told = [line["event"] for line in lines if line["log_level"] == "error"]
    assert told == ([] if is_stopping else ["restore_failed"])


@pytest.mark.parametrize("is_stopping", [False, True])
def test_a_server_that_is_stopped_while_it_loads_says_nothing_at_error_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_stopping: bool
) -> None:
    release = Release("r", "1", "0" * 64, "cnn", "nf4", "/a", "/g", 10, 12, 1.0, 1.0, None, None)
    http, control = listen_tcp("127.0.0.1", 0), listen_unix(tmp_path / "control.sock")
    server = ServerProcess(http, control, tmp_path / "control.sock")
    monkeypatch.setattr(server, "_ensure_running", lambda: None)

    def call(_path: Path, _method: str, route: str, *_: Any, **__: Any) -> list[Any]:
        if route.endswith("/index"):
            return []
        if is_stopping:
            server.stop()
        raise ControlError("it has gone")

    monkeypatch.setattr(adapter, "call", call)
    with http, control, capture_logs() as lines, pytest.raises(RestoreError):
        server.restore({"kanji": Served("kanji", release)})
    told = [line["event"] for line in lines if line["log_level"] == "error"]
    assert told == ([] if is_stopping else ["model_not_restored", "open_failed"])


def _fail(_served: Any) -> None:
    raise StepError(ErrorCode.LOAD_FAILED, "the server is gone", retryable=True)
