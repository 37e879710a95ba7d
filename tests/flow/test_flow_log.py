"""One operation's lines are found in the log by its id, whoever wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import structlog

from agent.deployment.inbox import Moved
from agent.deployment.phases import Phase
from tests.fakes.box import TOPICS, Box
from tests.fakes.device import GOOD_GATE

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


def test_a_build_says_which_method_it_is_about_in_the_log_and_in_its_progress(
    tmp_path: Path, lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(tmp_path)
    moved, post = list[Moved](), box.engine.post

    def listen(message: Any) -> None:
        moved.extend([message] if isinstance(message, Moved) else [])
        post(message)

    monkeypatch.setattr(box.engine._performing, "_post", listen)
    box.builder.gates = {name: {**GOOD_GATE, "agreement": 0.5, "inputs": "dataset"} for name in ("nf4", "mixed")}
    box.deploy("d-1")
    box.settle()
    assert box.report("d-1")["decision"]["method"] == "int8"
    begun = [line["method"].partition("-")[0] for line in lines if line["event"] == "building"]
    assert begun == ["nf4", "mixed", "int8"], "a mix has in its name what was demanded of it"
    named = [each.progress.method for each in moved if each.phase is Phase.BUILDING]
    assert named == ["nf4", "mixed", "int8"]
    told = [body for body in box.broker.bodies(TOPICS.operation("d-1")) if body["progress"]]
    assert told == [], "what is heard of a phase after its end is no progress of the next one"
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
