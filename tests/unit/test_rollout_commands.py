"""What a rollout sends, under which ids, and what it concludes from what devices say."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from agent.adapters.mqtt_operator import Heard
from agent.contract.commands import parse
from agent.contract.manifest import PAYLOAD_TYPE
from agent.contract.topics import is_id
from agent.contract.wire import dump
from agent.fleet.rollout import commands
from agent.fleet.rollout.events import Purpose, Serves
from agent.fleet.rollout.link import Link
from agent.fleet.rollout.plan import Plan

SHA = "a" * 64
NEW = {"version": "2", "sha256": SHA, "method": "nf4", "since": "2026-11-23T10:00:00.100Z"}
OLD = {"version": "1", "sha256": "b" * 64, "method": "nf4", "since": "2026-11-20T10:00:00.000Z"}
ENDED = {"state": "succeeded", "at": "2026-11-23T10:00:00.200Z"}


def plan(rollout: str = "r-1", /, **command: Any) -> Plan:
    body = {"schema": 1, "id": rollout, "command": command or deploy(), "waves": [{"name": "all", "percent": 100}]}
    return Plan.model_validate(body)


def deploy(**more: Any) -> dict[str, Any]:
    files = [{"name": "m.pt", "url": "https://h.example/m.pt", "sha256": SHA, "size": 9}]
    body = {"model": "kanji", "version": "2", "sequence": 2, "files": files}
    payload = base64.b64encode(json.dumps(body).encode()).decode()
    manifest = {"payloadType": PAYLOAD_TYPE, "payload": payload, "signatures": [{"keyid": "k", "sig": "AA=="}]}
    return {"name": "deploy", "model": "kanji", "manifest": manifest, **more}


def serving(**release: Any) -> dict[str, Any]:
    return {"models": {"kanji": release}}


def taken_back(message: tuple[str, dict[str, Any]] | str) -> tuple[str, dict[str, Any]]:
    assert not isinstance(message, str), message
    return message


def test_ids_follow_from_rollout_device_and_command_alone() -> None:
    ids = {
        commands.operation_id(each, device, purpose)
        for each in (plan(), plan("r-2"), plan(**deploy(method="fp4")))
        for device in ("box-1", "box-2")
        for purpose in Purpose
    }
    assert len(ids) == 18
    assert commands.operation_id(plan(), "box-1", Purpose.DO) == commands.operation_id(plan(), "box-1", Purpose.DO)
    longest = plan("r" * 40)
    assert all(is_id(commands.operation_id(longest, "d" * 64, purpose)) for purpose in Purpose)


@pytest.mark.parametrize("purpose", [Purpose.DO, Purpose.UNDO])
def test_an_operation_is_known_again_by_its_id_and_that_of_another_rollout_is_not(purpose: Purpose) -> None:
    operation = commands.operation_id(plan(), "box-1", purpose)
    assert commands.purpose_of(plan(), "box-1", operation) is purpose
    assert commands.purpose_of(plan(), "box-2", operation) is None
    assert commands.purpose_of(plan("r-2"), "box-1", operation) is None


def test_what_is_sent_is_what_the_contract_takes() -> None:
    name, body = commands.command(plan(), "box-1")
    assert parse(name, dump(body)).id == commands.operation_id(plan(), "box-1", Purpose.DO)
    name, body = commands.cancel(plan(), "box-1")
    assert parse(name, dump(body)).id == commands.operation_id(plan(), "box-1", Purpose.CANCEL)
    assert body["operation"] == commands.operation_id(plan(), "box-1", Purpose.DO)


def test_a_release_is_taken_back_by_a_rollback_and_a_first_one_by_an_undeploy() -> None:
    name, body = taken_back(commands.undo(plan(), "box-1", serving(**NEW, previous=OLD), ENDED))
    assert (name, body["model"], body["id"]) == (
        "rollback",
        "kanji",
        commands.operation_id(plan(), "box-1", Purpose.UNDO),
    )
    assert commands.undo(plan(), "box-1", serving(**NEW, previous=None), ENDED)[0] == "undeploy"


@pytest.mark.parametrize(
    ("reported", "why"),
    [
        ({"models": {}}, "kanji is not served any more"),
        (None, "kanji is not served any more"),
        (serving(**OLD, previous=None), "kanji is served as 1 by nf4, which this rollout did not bring"),
        (serving(**{**NEW, "since": OLD["since"]}, previous=OLD), "kanji was served like this before"),
    ],
)
def test_what_the_rollout_did_not_bring_is_not_taken_back(reported: dict[str, Any] | None, why: str) -> None:
    assert commands.undo(plan(), "box-1", reported, ENDED) == why


def test_a_plan_s_own_way_back_is_taken() -> None:
    undo = {"name": "set_config", "config": {"health": {"interval_s": None}}}
    own = plan(name="set_config", config={"health": {"interval_s": 5}}).model_copy(
        update={"undo": plan(**undo).command}
    )
    name, body = taken_back(commands.undo(own, "box-1", None, ENDED))
    assert (name, body["config"]) == ("set_config", {"health": {"interval_s": None}})


@pytest.mark.parametrize(
    ("command", "release", "expected"),
    [
        (deploy(), NEW, True),
        (deploy(), OLD, False),
        (deploy(method="fp4"), NEW, False),
        ({"name": "set_method", "model": "kanji", "method": "nf4"}, OLD, True),
        ({"name": "set_method", "model": "kanji", "method": "fp4"}, OLD, False),
        ({"name": "set_method", "model": "kanji", "method": "auto"}, OLD, None),
        ({"name": "undeploy", "model": "kanji"}, OLD, None),
    ],
)
def test_whether_a_device_serves_what_the_rollout_brings(
    command: dict[str, Any], release: dict[str, Any], *, expected: bool | None
) -> None:
    assert commands.serves(plan(**command), serving(**release)) is expected


def test_an_end_is_heard_once_the_device_has_said_what_it_serves_since() -> None:
    """Judged by what it served before, an abort would leave the new release on the device."""
    switch = plan(name="set_method", model="kanji", method="nf4")
    operation = commands.operation_id(switch, "box", Purpose.DO)
    link = Link(switch, None, "edge/v1")  # type: ignore[arg-type]  # nothing is sent

    def hear(topic: str, **body: Any) -> list[str]:
        words = link.words([Heard(f"edge/v1/box/{topic}", dump(body), is_retained=False)])
        return [type(word).__name__ for word in words]

    hear("reported", at="2026-11-23T10:00:00.000Z", **serving(**{**OLD, "method": "fp4"}))
    assert hear(f"op/{operation}", **ENDED) == []
    assert hear("reported", at="2026-11-23T10:00:00.300Z", **serving(**NEW)) == ["Told", "Serves"]
    assert hear(f"op/{operation}", **ENDED) == []


BEFORE, AT_ONCE, AFTER = (f"2026-11-23T10:00:00.{ms}Z" for ms in (100, 200, 300))


@pytest.mark.parametrize("is_first", [True, False], ids=["the operation first", "what it serves first"])
@pytest.mark.parametrize(("at", "is_since"), [(BEFORE, False), (AT_ONCE, False), (AFTER, True)])
def test_what_a_device_serves_is_judged_by_what_it_said_after_its_success(
    at: str, *, is_since: bool, is_first: bool
) -> None:
    """A broker hands over what it retains in any order."""
    switch = plan(name="set_method", model="kanji", method="nf4")
    operation = commands.operation_id(switch, "box", Purpose.DO)
    link = Link(switch, None, "edge/v1")  # type: ignore[arg-type]  # nothing is sent
    body = {"at": at, **serving(**{**OLD, "method": "fp4"})}
    retained = [
        Heard(f"edge/v1/box/op/{operation}", dump(ENDED), is_retained=True),
        Heard("edge/v1/box/reported", dump(body), is_retained=True),
    ]
    words = link.words(retained if is_first else retained[::-1])
    served = [word for word in words if isinstance(word, Serves)]
    assert served[-1] == Serves("box", is_ours=False, is_since=is_since)


def test_a_running_operation_says_nothing_of_what_is_served_after_it() -> None:
    switch = plan(name="set_method", model="kanji", method="nf4")
    operation = commands.operation_id(switch, "box", Purpose.DO)
    link = Link(switch, None, "edge/v1")  # type: ignore[arg-type]  # nothing is sent
    trial = {"state": "running", "phase": "trial", "at": BEFORE}
    body = {"at": AFTER, **serving(**{**OLD, "method": "fp4"})}
    retained = [
        Heard(f"edge/v1/box/op/{operation}", dump(trial), is_retained=True),
        Heard("edge/v1/box/reported", dump(body), is_retained=True),
    ]
    assert link.words(retained)[-1] == Serves("box", is_ours=False, is_since=False)
