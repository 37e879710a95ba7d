"""What the engine does with commands that it will not, or may not, carry out."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from agent.adapters.signatures import KeyDirectory
from agent.contract.wire import rfc3339
from agent.deployment.intake import MAX_OPEN
from agent.deployment.phases import RULES, OnFailure, Phase, State
from agent.fleet import keys
from tests.fakes.box import CONTENT, TOPICS, URL, Box, deploy_body
from tests.fakes.device import sha256

if TYPE_CHECKING:
    from pathlib import Path

ARTIFACT = {"url": URL, "sha256": sha256(CONTENT), "size": len(CONTENT)}


def rejections(box: Box) -> list[Any]:
    return [body for body in box.broker.bodies(TOPICS.event) if body["event"] == "command_rejected"]


def test_a_malformed_command_is_acknowledged_and_answered_on_the_audit_trail(box: Box) -> None:
    acknowledged = box.send("deploy", b"{not json")
    box.settle()

    assert acknowledged == ["ack"]
    (event,) = rejections(box)
    assert (event["id"], event["error"]["code"]) == (None, "bad_request")
    assert "line 1 column 2" in event["error"]["detail"]


def test_a_malformed_command_with_an_id_is_a_rejected_operation(box: Box) -> None:
    box.send("deploy", {"id": "d-1", "model": "kanji", "artifact": {"url": URL}})
    box.settle()

    report = box.report("d-1")
    assert (report["state"], report["error"]["code"]) == ("rejected", "bad_request")
    assert "artifact.sha256" in report["error"]["detail"]


@pytest.mark.parametrize(
    ("name", "body", "properties", "code"),
    [
        ("deploy", {"model": "kanji", "artifact": ARTIFACT, "model_type": "resnet"}, {}, "unknown_model_type"),
        ("deploy", {"model": "kanji", "artifact": ARTIFACT, "method": "int3"}, {}, "unsupported_method"),
        ("deploy", {"model": "kanji", "artifact": ARTIFACT}, {"is_retained": True}, "retained_command"),
        ("reboot", {}, {}, "unsupported_command"),
        ("set_method", {"model": "kana", "method": "nf4"}, {}, "unknown_model"),
        ("rollback", {"model": "kana"}, {}, "unknown_model"),
        ("undeploy", {"model": "kana"}, {}, "unknown_model"),
        ("cancel", {"operation": "nobody"}, {}, "unknown_operation"),
        ("cancel", {"operation": "second"}, {}, "not_cancelable"),
    ],
)
def test_a_command_that_cannot_be_meant_is_rejected(
    serving_box: Box, name: str, body: dict[str, Any], properties: dict[str, Any], code: str
) -> None:
    served = serving_box.serving()
    acknowledged = serving_box.send(name, {"id": "no", **body}, **properties)
    serving_box.settle()

    assert acknowledged == ["ack"]
    assert serving_box.states("no") == [("rejected", None)]
    assert serving_box.report("no")["error"]["code"] == code
    assert serving_box.report("no")["error"]["retryable"] is False
    assert serving_box.serving() == served


def test_a_second_rollback_has_nothing_to_go_back_to(serving_box: Box) -> None:
    serving_box.send("rollback", {"id": "one", "model": "kanji"})
    serving_box.settle()
    served = serving_box.serving()
    serving_box.send("rollback", {"id": "two", "model": "kanji"})
    serving_box.settle()

    assert serving_box.states("two") == [("rejected", None)]
    assert serving_box.report("two")["error"]["code"] == "nothing_to_roll_back"
    assert served is not None
    assert served in serving_box.report("two")["error"]["detail"]
    assert serving_box.serving() == served


def test_a_second_rollback_that_was_already_waiting_changes_nothing(serving_box: Box) -> None:
    serving_box.send("rollback", {"id": "one", "model": "kanji"})
    serving_box.send("rollback", {"id": "two", "model": "kanji"})
    serving_box.settle()

    assert serving_box.report("one")["state"] == "succeeded"
    assert serving_box.report("two")["state"] == "rolled_back"
    assert serving_box.report("two")["error"]["code"] == "nothing_to_roll_back"
    assert (serving_box.serving() or "").endswith("-fp4")


def test_an_expired_command_expires(box: Box) -> None:
    box.deploy("late", expires_at="2026-11-23T10:39:59Z")
    box.settle()
    assert box.states("late") == [("expired", None)]


def test_the_same_command_again_is_answered_with_what_became_of_the_first(box: Box) -> None:
    box.deploy("d-1")
    box.settle()
    before = len(box.broker.bodies(TOPICS.operation("d-1")))
    acknowledged = box.deploy("d-1")
    box.settle()

    assert acknowledged == ["ack"]
    assert len(box.broker.bodies(TOPICS.operation("d-1"))) == before + 1
    assert box.report("d-1")["state"] == "succeeded"
    assert len(box.builder.jobs) == 1


def test_an_id_used_for_something_else_is_a_conflict_and_the_first_answer_stands(box: Box) -> None:
    box.deploy("d-1")
    box.settle()
    before = box.broker.bodies(TOPICS.operation("d-1"))
    box.send("rollback", {"id": "d-1", "model": "kanji"}, response_topic="answers/me", correlation=b"7")
    box.settle()

    assert box.broker.bodies(TOPICS.operation("d-1")) == before
    (event,) = rejections(box)
    assert (event["id"], event["error"]["code"]) == ("d-1", "id_conflict")
    (answer,) = box.broker.bodies("answers/me")
    assert (answer["id"], answer["state"], answer["error"]["code"]) == ("d-1", "rejected", "id_conflict")


def test_a_malformed_command_never_touches_the_operation_whose_id_it_carries(box: Box) -> None:
    box.deploy("d-1")
    box.settle()
    before = box.broker.bodies(TOPICS.operation("d-1"))
    box.send("deploy", {"id": "d-1", "model": "a/b"})
    box.settle()

    assert box.broker.bodies(TOPICS.operation("d-1")) == before
    assert rejections(box)[0]["error"]["code"] == "bad_request"


def test_a_refusal_that_quotes_a_huge_field_still_fits_into_a_report(box: Box) -> None:
    payload = b'{"schema":1,"id":"d-1","model":"kanji","method":"%b"}' % (b"\x7f" * 60_000)
    acknowledged = box.send("deploy", payload)
    box.settle()

    assert acknowledged == ["ack"]
    assert box.report("d-1")["error"]["code"] == "unsupported_method"


def test_more_waiting_operations_than_allowed_are_told_that_the_device_is_busy(box: Box) -> None:
    for number in range(MAX_OPEN + 1):
        box.deploy(f"d-{number}", model=f"m-{number}", method="nf4")
    box._drain()

    assert box.report(f"d-{MAX_OPEN}")["error"]["code"] == "busy"
    box.settle()
    assert box.report(f"d-{MAX_OPEN - 1}")["state"] == "succeeded"


def test_nothing_is_acknowledged_before_the_journal_has_it(box: Box) -> None:
    box.journal.error = sqlite3.OperationalError("database or disk is full")
    acknowledged = box.deploy("d-1")
    malformed = box.send("deploy", b"{")
    box.settle()
    assert (acknowledged, malformed) == ([], [])
    assert box.broker.log == []

    box.journal.error = None
    again = box.deploy("d-1")
    box.settle()
    assert again == ["ack"]
    assert box.report("d-1")["state"] == "succeeded"


def test_a_journal_that_fails_while_deadlines_are_looked_at_does_not_end_the_loop(box: Box) -> None:
    box.deploy("d-1")
    box.go_to("d-1", Phase.BUILDING)
    box.clock.advance(1e6)
    box.journal.error = sqlite3.OperationalError("database or disk is full")
    assert box.engine.turn(wait_s=0) is True

    box.journal.error = None
    box.engine.turn(wait_s=0)
    assert box.report("d-1")["state"] == "timed_out"


@pytest.mark.parametrize("phase", [phase for phase, rule in RULES.items() if rule.is_cancelable])
def test_an_operation_can_be_canceled_until_it_is_activated(serving_box: Box, phase: Phase) -> None:
    served = serving_box.serving()
    serving_box.deploy("victim", method="fp4-dq")
    if phase is not Phase.QUEUED:
        serving_box.go_to("victim", phase)
    serving_box.send("cancel", {"id": "stop", "operation": "victim"})
    serving_box.settle()

    assert serving_box.report("stop")["state"] == "succeeded"
    assert serving_box.report("victim")["state"] == "canceled"
    assert serving_box.report("victim")["error"]["kept"] == f"kanji {served}"
    began = Phase.DOWNLOADING if phase is Phase.QUEUED else phase  # nothing runs before it, so it does not wait
    assert serving_box.report("victim")["error"]["detail"] == f"an operator stopped it {began.when}"
    rolled = ("running", "rolling_back") in serving_box.states("victim")
    assert rolled == (RULES[phase].on_failure is OnFailure.ROLL_BACK)
    assert serving_box.serving() == served
    assert serving_box.server.held("kanji") == {served}


@pytest.mark.parametrize("phase", [Phase.ACTIVATING, Phase.TRIAL])
def test_an_operation_that_is_being_activated_is_not_canceled(serving_box: Box, phase: Phase) -> None:
    serving_box.send("set_method", {"id": "victim", "model": "kanji", "method": "fp4-dq"})
    serving_box.go_to("victim", phase)
    serving_box.send("cancel", {"id": "stop", "operation": "victim"})
    serving_box.settle()

    assert serving_box.report("stop")["error"]["code"] == "not_cancelable"
    assert str(phase) in serving_box.report("stop")["error"]["detail"]
    assert serving_box.report("victim")["state"] == "succeeded"


@pytest.mark.parametrize(
    ("first", "state"), [("status", "succeeded"), ("rollback", "rejected"), ("deploy", "canceled")]
)
def test_who_cancels_what_has_ended_is_told_how_and_when_it_did(box: Box, first: str, state: str) -> None:
    body = deploy_body("first") if first == "deploy" else {"id": "first", "model": "kanji"}
    box.send(first, body)
    box.engine.turn(wait_s=0)
    box.send("cancel", {"id": "stop", "operation": "first"})
    box.settle()
    assert box.report("first")["state"] == state
    ended = rfc3339(box.clock.now())
    box.clock.advance(90)
    box.send("cancel", {"id": "again", "operation": "first"})
    box.settle()
    assert box.report("again")["error"]["detail"] == f"operation first has already ended as {state} at {ended}"


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.CANARY, Phase.ACTIVATING, Phase.TRIAL])
def test_canceling_a_waiting_operation_does_not_disturb_the_running_one(serving_box: Box, phase: Phase) -> None:
    serving_box.send("set_method", {"id": "running", "model": "kanji", "method": "fp4-dq"})
    serving_box.send("set_method", {"id": "waiting", "model": "kanji", "method": "nf4-dq"})
    serving_box.go_to("running", phase)
    serving_box.send("cancel", {"id": "stop", "operation": "waiting"})
    serving_box.settle()

    assert serving_box.report("waiting")["state"] == "canceled"
    assert serving_box.report("waiting")["error"]["detail"] == "an operator stopped it while it waited"
    assert serving_box.report("running")["state"] == "succeeded"
    assert (serving_box.serving() or "").endswith("-fp4-dq")


def test_the_late_outcome_of_given_up_work_changes_nothing(serving_box: Box) -> None:
    served = serving_box.serving()
    serving_box.send("set_method", {"id": "victim", "model": "kanji", "method": "fp4-dq"})
    serving_box.go_to("victim", Phase.LOADING)
    serving_box.runner.pump()  # loaded, but the engine hears of the cancel first
    late = serving_box.engine._inbox.get(0)
    assert late is not None
    serving_box.send("cancel", {"id": "stop", "operation": "victim"})
    serving_box._drain()
    serving_box.engine.post(late)
    serving_box.settle()

    assert serving_box.record("victim").state is State.CANCELED
    assert serving_box.serving() == served


def test_an_unsigned_deploy_is_refused_where_signatures_are_required(tmp_path: Path) -> None:
    box = Box(tmp_path, KeyDirectory(tmp_path / "trust.d"))
    box.deploy("plain")
    box.settle()

    error = box.report("plain")["error"]
    assert error["code"] == "untrusted_key"
    assert "nibblectl keygen" in error["hint"]
    assert "nibblectl sign" in error["hint"]
    box.journal.close()


def test_a_signed_deploy_is_served_and_an_older_sequence_is_refused_afterwards(tmp_path: Path) -> None:
    (tmp_path / "trust.d").mkdir()
    private, _ = keys.generate(tmp_path / "trust.d", "fleet")
    box = Box(tmp_path, KeyDirectory(tmp_path / "trust.d"))
    for number, sequence in enumerate((7, 7, 6)):
        manifest = {
            "model": "kanji",
            "version": f"v{number}",
            "sequence": sequence,
            "files": [{"name": "kanji.pt", **ARTIFACT}],
        }
        body = {"id": f"d-{number}", "model": "kanji", "manifest": keys.sign(manifest, private)}
        box.send("deploy", body)
        box.settle()

    assert box.report("d-0")["state"] == "succeeded"
    assert box.report("d-1")["state"] == "succeeded"
    assert box.report("d-2")["error"]["code"] == "stale_sequence"
    assert (box.serving() or "").startswith("v1-")
    box.journal.close()


def test_a_manifest_for_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trust.d").mkdir()
    private, _ = keys.generate(tmp_path / "trust.d", "fleet")
    box = Box(tmp_path, KeyDirectory(tmp_path / "trust.d"))
    manifest = {"model": "kana", "version": "v1", "sequence": 1, "files": [{"name": "kanji.pt", **ARTIFACT}]}
    box.send("deploy", {"id": "d-1", "model": "kanji", "manifest": keys.sign(manifest, private)})
    box.settle()

    assert box.report("d-1")["error"]["code"] == "bad_request"
    box.journal.close()


def test_a_manifest_of_several_files_is_refused_with_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "trust.d").mkdir()
    private, _ = keys.generate(tmp_path / "trust.d", "fleet")
    box = Box(tmp_path, KeyDirectory(tmp_path / "trust.d"))
    files = [{"name": name, **ARTIFACT} for name in ("config.json", "model.safetensors")]
    manifest = {"model": "kanji", "version": "v1", "sequence": 1, "files": files}
    box.send("deploy", {"id": "d-1", "model": "kanji", "manifest": keys.sign(manifest, private)})
    box.settle()

    error = box.report("d-1")["error"]
    assert (error["code"], error["detail"]) == (
        "bad_request",
        "the manifest names 2 files, a model is deployed from one",
    )
    assert "tar -chf" in error["hint"]
    box.journal.close()


@pytest.mark.parametrize("name", ["hf", "timm:resnet50.a1_in1k", "auto", "cnn"])
def test_names_of_known_types_and_of_other_libraries_are_left_to_the_builder(tmp_path: Path, name: str) -> None:
    box = Box(tmp_path)
    box.send("deploy", {"id": "d-1", "model": "kanji", "artifact": ARTIFACT, "model_type": name})
    box.settle()
    assert box.report("d-1")["state"] == "succeeded"
    box.journal.close()
