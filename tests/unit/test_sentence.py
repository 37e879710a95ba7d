"""The state of the agent in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.deployment.machine import Operation
from agent.deployment.phases import Phase, State
from agent.health.sentence import sentence

BUILDING = Operation(
    id="d-1",
    command="deploy",
    model="kanji",
    fingerprint="f",
    request={},
    state=State.RUNNING,
    phase=Phase.BUILDING,
)


@pytest.mark.parametrize(
    ("health", "operations", "mode", "is_connected", "expected"),
    [
        ({"status": "starting"}, [], "current", False, "starting; serving nothing; no broker"),
        ({"status": "ok", "models": {"b": {}, "a": {}}}, [], "current", True, "ok; serving a, b; broker connected"),
        (
            {"status": "ok", "models": {name: {} for name in "abcde"}},
            [BUILDING, replace(BUILDING, id="d-2")],
            "safe",
            True,
            "ok; serving a, b, c and 2 more; deploy d-1: building; 1 waiting; mode safe; broker connected",
        ),
    ],
)
def test_it_says_what_is_served_what_goes_on_and_what_is_wrong(
    health: dict[str, object], operations: list[Operation], mode: str, *, is_connected: bool, expected: str
) -> None:
    assert sentence(health, operations, mode, is_connected=is_connected) == expected


@pytest.mark.parametrize(
    ("models", "is_restoring", "expected"),
    [
        ({}, True, "restoring kana, kanji; broker connected"),
        ({"kana": {}}, True, "restoring kanji; serving kana; broker connected"),
        ({}, False, "failing; serving nothing; broker connected"),
    ],
)
def test_what_is_still_being_loaded_is_restored_and_has_not_failed(
    models: dict[str, object], *, is_restoring: bool, expected: str
) -> None:
    health = {"status": "failing", "served": ["kanji", "kana"], "models": models}
    assert sentence(health, [], "current", is_connected=True, is_restoring=is_restoring) == expected
