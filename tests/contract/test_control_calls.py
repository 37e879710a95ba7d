"""Calls to a server that is dead, or dies: the socket still takes them, and nobody waits for an answer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from agent.adapters.control import Calls, ControlError, call
from agent.adapters.sockets import listen_unix

if TYPE_CHECKING:
    from pathlib import Path

LONG_S = 120.0


def test_a_call_that_is_made_after_the_server_s_death_fails_at_once(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with listen_unix(path), pytest.raises(ControlError, match="no server"):
        call(path, "GET", "/v2/health/live", timeout_s=LONG_S, calls=Calls(lambda: False))


def test_a_call_under_way_ends_when_the_server_does(tmp_path: Path) -> None:
    path, asked, failed = tmp_path / "control.sock", threading.Event(), list[ControlError]()

    def is_alive() -> bool:
        asked.set()
        return True

    calls = Calls(is_alive)

    def ask() -> None:
        with pytest.raises(ControlError) as caught:
            call(path, "POST", "/v2/repository/models/m/canary", {}, timeout_s=LONG_S, calls=calls)
        failed.append(caught.value)

    with listen_unix(path):
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        assert asked.wait(10)
        calls.hang_up()
        asking.join(10)
        assert not asking.is_alive()
    assert failed[0].status is None
