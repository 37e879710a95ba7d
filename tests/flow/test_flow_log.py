"""One operation's lines are found in the log by its id, whoever wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import structlog

from tests.fakes.box import Box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.deployment.ports import Watch

log = structlog.get_logger("an adapter")


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """What is logged, with what is bound to the thread, as the agent's own chain has it."""
    found: list[Any] = []

    def keep(_logger: Any, _method: str, event: Any) -> Any:
        found.append({**structlog.contextvars.get_contextvars(), **event})
        raise structlog.DropEvent

    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    yield found
    structlog.reset_defaults()


def test_every_line_of_an_operation_carries_its_id(
    tmp_path: Path, lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(tmp_path)
    fetch = box.sources.fetch

    def noisy(url: str, destination: Path, size: int | None, watch: Watch) -> bool:
        log.warning("within a step")
        return fetch(url, destination, size, watch)

    monkeypatch.setattr(box.sources, "fetch", noisy)
    box.deploy("d-1", method="nf4")
    box.settle()
    log.warning("after it")
    told = {line["event"] for line in lines if line.get("id") == "d-1"}
    assert {"command", "operation", "within a step"} <= told
    assert next(line for line in lines if line["event"] == "after it").get("id") is None
    box.journal.close()


def test_a_step_that_breaks_says_so_under_the_operation_s_id(
    tmp_path: Path, lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(tmp_path)

    def broken(*_: object) -> bool:
        raise KeyError("a bug")

    monkeypatch.setattr(box.sources, "fetch", broken)
    box.deploy("d-1", method="nf4")
    box.settle()
    assert [line["id"] for line in lines if line["event"] == "step_error"]
    assert all(line["id"] == "d-1" for line in lines if line["event"] == "step_error")
    box.journal.close()
