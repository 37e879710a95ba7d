"""Jobs of AWS IoT on a device with the real engine: what the service says in the end is what became of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent.contract.errors import ErrorCode, RefusalError
from agent.deployment.phases import Phase, State
from agent.fleet.bridge import aws_jobs, requests
from agent.fleet.bridge.aws_machine import LOOK_AGAIN_S, MAX_PAUSE_S
from tests.fakes.box import deploy_body
from tests.fakes.bridged import THING, JobsBridged

if TYPE_CHECKING:
    from tests.fakes.box import Box

JsonObject = dict[str, Any]


def job(command: str, **fields: Any) -> JsonObject:
    return {"nibbled": {"command": command, **fields}}


def deploy(**more: Any) -> JsonObject:
    fields = deploy_body("any", **more)
    del fields["id"]
    return job("deploy", **fields)


def operation(name: str, number: int = 1) -> str:
    return requests.operation_id("aws", THING, name, number)


@pytest.fixture
def aws(box: Box) -> JobsBridged:
    return JobsBridged(box)


def test_a_job_is_carried_out_and_its_phases_are_told(aws: JobsBridged) -> None:
    aws.create("j-1", deploy(method="nf4"))
    aws.pump()
    status, details = aws.status("j-1")
    assert (status, details["state"], details["method"]) == ("SUCCEEDED", "succeeded", "nf4")
    assert details["operation"] == operation("j-1")
    assert (aws.box.serving() or "").endswith("-nf4")
    assert aws.updates("j-1")[-1] == "SUCCEEDED"
    assert [each.name for each in aws.sent] == ["deploy"]


def test_each_phase_is_one_update(aws: JobsBridged) -> None:
    aws.create("j-1", deploy(method="nf4"))
    phases = (Phase.DOWNLOADING, Phase.BUILDING, Phase.CANARY)
    aws.talk()
    for phase in phases:
        aws.box.go_to(operation("j-1"), phase)
        aws.talk()
    aws.pump()
    assert aws.updates("j-1") == [*(f"IN_PROGRESS {phase}" for phase in phases), "SUCCEEDED"]


def test_what_the_device_refuses_is_rejected_and_what_it_fails_at_is_failed(aws: JobsBridged) -> None:
    aws.create("refused", job("rollback", model="nobody"))
    aws.pump()
    status, details = aws.status("refused")
    assert (status, details["code"]) == ("REJECTED", "unknown_model")
    aws.box.sources.files.clear()
    aws.create("failed", deploy())
    aws.pump()
    status, details = aws.status("failed")
    assert (status, details["code"]) == ("FAILED", "download_failed")
    assert details["retryable"] in ("true", "false")


@pytest.mark.parametrize(
    ("document", "code", "words"),
    [
        (job("reboot"), "unsupported_command", "unknown command 'reboot'"),
        (job("cancel", operation="o"), "unsupported_command", "unknown command 'cancel'"),
        (job("rollback"), "bad_request", "rollback: model: Field required"),
        (job("rollback", model="kanji", id="mine"), "bad_request", "id cannot be asked for"),
        (job("set_method", model="kanji", method="nf5"), "unsupported_method", "unknown method 'nf5'"),
        ({"nibbled": "rollback"}, "bad_request", "expected an object"),
        ({"nibbled": {}}, "unsupported_command", "unknown command 'None'"),
    ],
)
def test_a_document_that_no_device_would_take_is_rejected_at_once(
    aws: JobsBridged, document: JsonObject, code: str, words: str
) -> None:
    aws.turn(is_online=False)
    aws.create("j-1", document)
    aws.pump()
    status, details = aws.status("j-1")
    assert (status, details["code"]) == ("REJECTED", code)
    assert words in details["detail"]
    assert aws.sent == []


def test_jobs_for_other_programs_are_left_alone_and_do_not_hold_up_ours(aws: JobsBridged) -> None:
    aws.create("theirs", {"operation": "reboot"})
    aws.create("text", "< contents of job document >")
    aws.create("ours", deploy())
    aws.pump()
    assert [aws.status(name)[0] for name in ("theirs", "text", "ours")] == ["QUEUED", "QUEUED", "SUCCEEDED"]
    assert aws.updates("theirs") == []


def test_jobs_are_done_one_after_the_other_in_their_order(aws: JobsBridged) -> None:
    aws.create("first", deploy(method="fp4"))
    aws.create("second", job("set_method", model="kanji", method="nf4"))
    aws.create("third", job("rollback", model="kanji"))
    aws.pump()
    assert [aws.status(name)[0] for name in ("first", "second", "third")] == ["SUCCEEDED"] * 3
    assert [each.name for each in aws.sent] == ["deploy", "set_method", "rollback"]
    assert (aws.box.serving() or "").endswith("-fp4")


def test_a_job_for_a_device_that_is_away_stays_queued_until_it_comes_back(aws: JobsBridged) -> None:
    aws.turn(is_online=False)
    aws.create("j-1", deploy())
    aws.pump()
    assert (aws.status("j-1")[0], aws.sent) == ("QUEUED", [])
    aws.turn(is_online=True)
    aws.pump()
    assert aws.status("j-1")[0] == "SUCCEEDED"


def test_a_job_that_is_canceled_there_is_canceled_here(aws: JobsBridged) -> None:
    aws.create("j-1", deploy())
    aws.talk()
    aws.box.go_to(operation("j-1"), Phase.BUILDING)
    aws.talk()
    assert aws.status("j-1")[0] == "IN_PROGRESS"
    aws.hear(aws.service.end(THING, "j-1", "CANCELED"))
    aws.talk()
    aws.pump()
    assert aws.box.report(operation("j-1"))["state"] == "canceled"
    assert aws.status("j-1")[0] == "CANCELED"


@pytest.mark.parametrize("how", ["CANCELED", "TIMED_OUT", "REMOVED", "deleted"])
def test_what_ended_there_while_no_bridge_ran_is_canceled_when_one_runs_again(aws: JobsBridged, how: str) -> None:
    aws.create("j-1", deploy())
    aws.talk()
    aws.box.go_to(operation("j-1"), Phase.BUILDING)
    aws.service.delete(THING, "j-1") if how == "deleted" else aws.service.end(THING, "j-1", how)
    aws.restart()
    aws.talk()
    aws.pump()
    assert aws.box.report(operation("j-1"))["state"] == "canceled"


def test_the_operations_of_another_bridge_and_of_people_are_not_touched(aws: JobsBridged) -> None:
    other = requests.operation_id("aws2", THING, "j-1", 1)
    aws.box.deploy(other)
    aws.box.go_to(other, Phase.BUILDING)
    aws.restart()
    aws.pump()
    assert aws.box.report(other)["state"] == "succeeded"


@pytest.mark.parametrize("phase", [Phase.DOWNLOADING, Phase.BUILDING, Phase.CANARY, Phase.TRIAL])
def test_a_bridge_that_is_killed_at_any_time_goes_on_and_the_device_does_it_once(
    aws: JobsBridged, phase: Phase
) -> None:
    aws.create("j-1", deploy(method="nf4"))
    aws.talk()
    aws.restart()
    aws.box.go_to(operation("j-1"), phase)
    aws.restart()
    aws.pump()
    aws.restart()
    aws.pump()
    assert aws.status("j-1")[0] == "SUCCEEDED"
    assert [state for state, _ in aws.box.states(operation("j-1"))].count("accepted") == 1


def test_what_ended_here_while_no_bridge_ran_is_told_when_one_runs_again(aws: JobsBridged) -> None:
    aws.create("j-1", deploy())
    aws.talk()
    aws.box.settle()
    aws.restart()
    aws.pump()
    assert aws.status("j-1")[0] == "SUCCEEDED"
    assert len(aws.sent) == 1


def test_a_command_that_got_lost_is_sent_again_as_it_was(box: Box) -> None:
    aws = JobsBridged(box)
    aws.create("j-1", deploy())
    box.send = lambda *_a, **_k: []  # type: ignore[method-assign]
    aws.pump()
    aws.now_s += 30.0
    aws.pump()
    assert len(aws.sent) == 1
    del box.send
    aws.now_s += 31.0
    aws.pump()
    assert aws.sent[0].body == aws.sent[1].body
    assert aws.status("j-1")[0] == "SUCCEEDED"


def test_a_job_that_is_tried_again_there_is_a_new_operation_here(aws: JobsBridged) -> None:
    files = dict(aws.box.sources.files)
    aws.box.sources.files.clear()
    aws.create("j-1", deploy())
    aws.pump()
    assert aws.status("j-1")[0] == "FAILED"
    aws.box.sources.files.update(files)
    aws.create("j-1", deploy())
    aws.pump()
    assert aws.service.find(THING, "j-1").number == 2
    assert aws.status("j-1")[0] == "SUCCEEDED"


def test_somebody_else_s_update_is_taken_in_and_ours_is_made_with_the_new_version(aws: JobsBridged) -> None:
    aws.create("j-1", deploy())
    aws.talk()
    aws.box.go_to(operation("j-1"), Phase.BUILDING)
    found = aws.service.find(THING, "j-1")
    found.version, found.details = found.version + 3, {"note": "a person was here"}
    aws.talk()
    assert any("VersionMismatch" in note for note in aws.notes)
    for _ in range(5):
        aws.now_s += 5.0
        aws.pump()
    assert aws.status("j-1")[0] == "SUCCEEDED"


def test_an_update_that_meets_a_canceled_job_cancels_here(aws: JobsBridged) -> None:
    aws.create("j-1", deploy())
    aws.talk()
    aws.box.go_to(operation("j-1"), Phase.PLANNING)
    aws.service.end(THING, "j-1", "CANCELED")  # and the notification got lost
    aws.talk()
    aws.pump()
    assert aws.box.report(operation("j-1"))["state"] == "canceled"


def test_answers_that_get_lost_are_asked_for_again(aws: JobsBridged) -> None:
    aws.create("j-1", deploy())
    for _ in range(6):
        aws.loses_answers = 1
        aws.pump()
        aws.now_s += 11.0
    for _ in range(3):
        aws.pump()
        aws.now_s += 11.0
    assert aws.status("j-1")[0] == "SUCCEEDED"
    assert any("no answer" in note for note in aws.notes)


def test_a_notification_that_got_lost_is_made_up_for(aws: JobsBridged) -> None:
    aws.pump()
    aws.service.create(THING, "j-1", deploy())
    aws.pump()
    assert aws.status("j-1")[0] == "QUEUED"
    aws.now_s += LOOK_AGAIN_S
    aws.pump()
    assert aws.status("j-1")[0] == "SUCCEEDED"


def test_a_service_that_refuses_for_days_is_asked_every_minute_and_heard_when_it_is_well_again(
    aws: JobsBridged,
) -> None:
    def refuse(topic: str, payload: bytes) -> list[tuple[str, JsonObject]]:
        asked.append(topic)
        token = json.loads(payload)["clientToken"]
        return [(f"{topic}/rejected", {"code": "RequestThrottled", "clientToken": token})]

    asked: list[str] = []
    aws.service.request = refuse  # type: ignore[method-assign]
    for _ in range(2000):
        aws.now_s += MAX_PAUSE_S
        aws.step()
    assert len(asked) == 2000
    del aws.service.request
    aws.create("j-1", deploy())
    aws.now_s += MAX_PAUSE_S
    aws.pump()
    assert aws.status("j-1")[0] == "SUCCEEDED"


def test_answers_to_another_run_are_not_listened_to(aws: JobsBridged) -> None:
    aws.create("j-1", deploy())
    aws.hear(
        [(f"$aws/things/{THING}/jobs/get/accepted", {"queuedJobs": [], "inProgressJobs": [], "clientToken": "x-1"})]
    )
    aws.pump()
    assert aws.status("j-1")[0] == "SUCCEEDED"


def test_a_full_list_is_no_reason_to_cancel(aws: JobsBridged) -> None:
    ours = operation("older")
    aws.box.deploy(ours)
    aws.box.go_to(ours, Phase.BUILDING)
    for number in range(aws_jobs.MAX_LISTED):
        aws.create(f"theirs-{number}", {"operation": "reboot"})
    aws.restart()
    aws.pump()
    assert aws.box.report(ours)["state"] == "succeeded"


def test_a_timer_of_the_service_is_wound_up_by_each_update(box: Box) -> None:
    aws = JobsBridged(box, step_timeout_min=30)
    aws.create("j-1", deploy())
    aws.talk()
    box.go_to(operation("j-1"), Phase.BUILDING)
    aws.pump()
    told = [body for topic, body in aws.service.requests if topic.endswith("/update")]
    assert {body.get("stepTimeoutInMinutes") for body in told if body["status"] == "IN_PROGRESS"} == {30}
    assert "stepTimeoutInMinutes" not in told[-1]


def test_what_cannot_be_signed_small_enough_is_rejected(box: Box) -> None:
    def seal(_device: str, _name: str, _body: JsonObject) -> JsonObject:
        raise RefusalError(ErrorCode.BAD_REQUEST, "signed, it has 70000 bytes")

    aws = JobsBridged(box, seal=seal)
    aws.create("j-1", deploy())
    aws.pump()
    assert aws.status("j-1") == ("REJECTED", {"code": "bad_request", "detail": "signed, it has 70000 bytes"})


def test_every_state_of_ours_has_one_of_theirs() -> None:
    assert set(aws_jobs.STATUS) == set(State)
    assert {state for state, status in aws_jobs.STATUS.items() if status == "IN_PROGRESS"} == {
        state for state in State if not state.is_terminal
    }
