"""What a device said, as lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent.fleet.client import FleetClient
from agent.fleet.sending import follow_operation
from agent.fleet.target import Target
from agent.fleet.words import operation_lines, presence_line, status_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = {"id": "d-1", "state": "running", "phase": "building", "progress": None, "detail": None, "error": None}
ERROR = {"code": "gate_failed", "detail": "agreement 0.31 of 0.95", "hint": "try mixed", "kept": None}
DECISION = {"explanation": ["Chosen: nf4."]}
ONLINE = {"state": "online", "agent": "0.1.0", "at": "2026-11-29T08:00:00.000Z", "reason": None}
MODEL = {
    "version": "2", "method": "nf4", "state": "serving", "since": "2026-11-29T08:01:00.000Z",
    "resident_bytes": 605124, "agreement": 0.8515625, "previous": {"version": "1", "method": "fp4"},
}  # fmt: skip
MEMORY = {"room_bytes": 3 * 2**30, "total_bytes": 8 * 2**30, "source": "cuda"}
REPORTED = {
    "models": {"kanji": MODEL}, "memory": MEMORY, "trust": {"require_signature": False},
    "config": {"health": {"interval_s": 5.0}}, "generation": 7, "at": "2026-11-29T08:02:00.000Z",
}  # fmt: skip
METHODS = {"nf4": {"ok": True, "detail": None}, "int8": {"ok": False, "detail": "no kernel for sm_53"}}


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["d-1 running building"]),
        ({"progress": {"done": 3, "total": 70, "unit": "tensors"}}, ["d-1 running building 3/70 tensors"]),
        ({"decision": DECISION}, ["d-1 running building"]),
        ({"state": "succeeded", "phase": None, "decision": DECISION}, ["d-1 succeeded", "  Chosen: nf4."]),
        (
            {"state": "accepted", "phase": "queued", "detail": "deferred: the clock"},
            ["d-1 accepted queued", "  deferred: the clock"],
        ),
        (
            {"state": "failed", "phase": None, "decision": DECISION, "error": ERROR},
            ["d-1 failed", "  Chosen: nf4.", "  gate_failed: agreement 0.31 of 0.95", "  hint: try mixed"],
        ),
    ],
)
def test_an_operation_says_where_it_stands_and_in_the_end_why(changes: dict[str, Any], lines: list[str]) -> None:
    assert list(operation_lines({**STATE, **changes})) == lines


def test_a_device_that_is_away_says_how_it_went() -> None:
    will = {"state": "offline", "reason": None, "at": None, "agent": "0.1.0"}
    assert presence_line("box", will) == "box is offline: it was cut off"
    clean = {**will, "reason": "shutdown", "at": "2026-11-29T08:00:00.000Z"}
    assert presence_line("box", clean) == "box is offline since 2026-11-29T08:00:00.000Z: shutdown"


def test_the_status_is_what_is_served_and_what_is_not_as_it_should_be() -> None:
    told: dict[str, Any] = {"presence": ONLINE, "reported": REPORTED, "capabilities": {"methods": METHODS}}
    assert list(status_lines("box", told)) == [
        "box is online, nibbled 0.1.0, connected since 2026-11-29T08:00:00.000Z",
        "kanji 2 as nf4: serving since 2026-11-29T08:01:00.000Z, 591 KiB, 85.2% of its answers are the source's",
        "  rollback goes to 1 as fp4",
        "memory for models: 3.0 GiB of 8.0 GiB (cuda)",
        "trust.require_signature is off: anybody on the broker may deploy",
        'changed by set-config: {"health": {"interval_s": 5.0}}',
        "desired generation: 7",
        "methods that work: nf4",
        "  int8 does not: no kernel for sm_53",
        "as of 2026-11-29T08:02:00.000Z; everything that it said: --json",
    ]


def test_a_status_without_models_and_with_figures_missing_is_still_one() -> None:
    model = {**MODEL, "resident_bytes": None, "agreement": None, "previous": None, "since": None}
    trust = {"require_signature": True}
    bare = {**REPORTED, "models": {}, "memory": {"room_bytes": None}, "trust": trust, "config": {}, "generation": None}
    told: dict[str, Any] = {"presence": ONLINE, "reported": bare, "capabilities": {"methods": {}}}
    assert list(status_lines("box", told))[1:] == [
        "no model is served",
        "methods that work: not known yet, the self-test is still running",
        "as of 2026-11-29T08:02:00.000Z; everything that it said: --json",
    ]
    told["capabilities"] = {"methods": {"nf4": {"ok": False, "detail": "no kernel"}}}
    assert list(status_lines("box", told))[2:4] == ["methods that work: none", "  nf4 does not: no kernel"]
    told["reported"] = {**bare, "models": {"kanji": model}}
    assert list(status_lines("box", told))[1] == "kanji 2 as nf4: serving since an unknown time"


class Said(FleetClient):
    """A device that says again what it said, as after a reconnection."""

    def __init__(self) -> None:
        pass

    def follow(self, operation_id: str, timeout_s: float) -> Iterator[dict[str, Any]]:
        del operation_id, timeout_s
        yield from (STATE, {**STATE, "seq": 2}, {**STATE, "state": "succeeded", "phase": None})


def test_what_is_said_twice_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow_operation(Target(wait_s=1.0), Said(), "d-1") == 0
    assert capsys.readouterr().out == "d-1 running building\nd-1 succeeded\n"
