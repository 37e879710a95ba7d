"""What crosses a bridge, by the other side's own documents: topics, limits and sequences that were copied from them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from paho.mqtt.client import topic_matches_sub

from agent.contract.commands import COMMANDS
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.topics import is_id
from agent.deployment.phases import State
from agent.fleet.bridge import aws_jobs, cli, requests, schema, thin_edge
from agent.fleet.bridge.aws_jobs import JobTopics
from agent.fleet.bridge.aws_machine import ThingJobs
from agent.fleet.bridge.requests import Foreign
from agent.fleet.bridge.thin_edge import EntityTopics
from agent.fleet.cli import main
from agent.fleet.shapes import is_over
from agent.fleet.view import Device
from tests.fakes.aws_jobs import JobsService

if TYPE_CHECKING:
    from collections.abc import Callable

JsonObject = dict[str, Any]
ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parents[1] / "data" / "bridges"
AWS: JsonObject = json.loads((DATA / "aws_jobs.json").read_text(encoding="utf-8"))
TE: JsonObject = json.loads((DATA / "thin_edge.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "bridges.md").read_text(encoding="utf-8")
_TIMES = ("timestamp", "queuedAt", "lastUpdatedAt", "startedAt", "thingName", "statusDetails")


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in _TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def ended(state: str, **error: Any) -> JsonObject:
    return {"schema": 1, "id": "aws-1", "state": state, "phase": None, "model": "kanji", "error": error or None}


def test_the_stand_in_publishes_what_the_service_s_documents_show() -> None:
    service, thing = JobsService(), "MyThing"
    root = f"$aws/things/{thing}/jobs"
    for step in AWS["notifications"]["steps"]:
        if "create" in step:
            found = service.create(thing, step["create"], {"operation": "test"})
        elif "delete" in step:
            found = service.delete(thing, step["delete"])
        else:
            job, status = step["update"]
            answer, *found = service.request(f"{root}/{job}/update", json.dumps({"status": status}).encode())
            assert answer[0] == f"{root}/{job}/update/accepted"
        told = [[topic.removeprefix(f"{root}/"), without_times(body)] for topic, body in found]
        assert told == step["published"], step


@pytest.mark.parametrize(
    ("before", "request_", "code"),
    [
        ("QUEUED", {"status": "TIMED_OUT"}, "InvalidRequest"),
        ("QUEUED", {"status": "IN_PROGRESS", "statusDetails": {"a b": "c"}}, "InvalidRequest"),
        ("QUEUED", {"status": "IN_PROGRESS", "statusDetails": {"a": ""}}, "InvalidRequest"),
        ("QUEUED", {"status": "IN_PROGRESS", "expectedVersion": 7}, "VersionMismatch"),
        ("QUEUED", {"status": "SUCCEEDED"}, "InvalidStateTransition"),
        ("CANCELED", {"status": "IN_PROGRESS"}, "InvalidStateTransition"),
    ],
)
def test_the_stand_in_refuses_what_the_service_refuses(before: str, request_: JsonObject, code: str) -> None:
    service = JobsService()
    service.create("t", "j", {})
    service.find("t", "j").status = before
    ((topic, body),) = service.request("$aws/things/t/jobs/j/update", json.dumps(request_).encode())
    assert (topic.rpartition("/")[2], body["code"]) == ("rejected", code)
    assert ("executionState" in body) == (code in ("VersionMismatch", "InvalidStateTransition"))


def test_the_topics_of_a_thing_are_the_reserved_ones() -> None:
    told, topics = AWS["topics"], JobTopics(AWS["topics"]["thing"])
    job = told["job"]
    assert [topics.pending, topics.describe(job), topics.update(job)] == told["published"]
    for topic in told["subscribed"]:
        assert [each for each in topics.filters if topic_matches_sub(each, topic)] != [], topic
    with pytest.raises(ValueError, match="thing name 'a/b' must match"):
        JobTopics("a/b")


def test_requests_have_the_fields_of_the_service_s_own_model() -> None:
    model = AWS["model"]
    service, thing = JobsService(), model["thing"]
    machine = ThingJobs(
        Device("box"), thing, bridge="aws", run="r", seal=lambda _device, _name, body: body, step_timeout_min=1
    )
    service.create(thing, "j", {"nibbled": {"command": "rollback"}})
    for _ in range(4):
        for out in machine.act(0.0):
            assert isinstance(out, Foreign)
            for topic, body in service.request(out.topic, out.payload):
                machine.take(topic, json.dumps(body).encode(), 0.0)
    assert [topic.rpartition("/")[2] for topic, _ in service.requests] == ["get", "get", "update", "get"]
    for topic, body in service.requests:
        kind = "update" if topic.endswith("/update") else "describe" if topic.count("/") > 4 else "pending"
        assert set(body) - {"clientToken"} <= set(model[kind]), topic
    assert (aws_jobs.MAX_VALUE, set(aws_jobs.TERMINAL)) == (
        model["value_characters"],
        set(model["statuses"]) - {"QUEUED", "IN_PROGRESS"},
    )


def test_a_job_as_the_documents_show_it_is_somebody_else_s() -> None:
    found = aws_jobs.execution(AWS["started"]["execution"], "aws-1")
    assert (found.key, found.status, found.version, found.is_ours) == (("022", 1234567890), "IN_PROGRESS", 1, False)


def test_what_the_service_would_not_call_a_job_becomes_no_topic() -> None:
    good, text = {"jobId": "j-1", "executionNumber": 1}, "j-2"
    bad = [{"jobId": "a/#", "executionNumber": 1}, {"jobId": "j", "executionNumber": [1]}, {"jobId": 5}]
    assert aws_jobs.pending({"inProgressJobs": [*bad, good], "queuedJobs": [text]}) == [("j-1", 1)]


def test_each_connection_asks_with_tokens_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer to what was asked over the connection before may come over the next one."""
    tokens: list[str] = []

    def carry(_sides: object, _devices: object, make: Callable[[Device], ThingJobs]) -> None:
        for _ in range(2):
            (asked,) = make(Device("box-1")).act(0.0)
            assert isinstance(asked, Foreign)
            tokens.append(json.loads(asked.payload)["clientToken"])

    monkeypatch.setattr(cli, "_carry", carry)
    done = CliRunner().invoke(main, ["bridge", "aws-jobs"], env={"NIBBLECTL_PROFILES": "none.toml"})
    assert (done.exit_code, len(set(tokens))) == (0, 2)


def test_a_document_may_be_text() -> None:
    document = json.dumps({"nibbled": {"command": "rollback", "model": "kanji"}})
    assert aws_jobs.request(document, "aws-1") == ("rollback", {"schema": 1, "id": "aws-1", "model": "kanji"})


@pytest.mark.parametrize("state", list(State))
def test_a_state_is_told_by_the_table_of_the_page(state: State) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{state}` |")]
    _, aws, te = re.findall(r"`([\w]+)`", row)[:3]
    assert aws_jobs.told(ended(str(state)))[0] == aws == aws_jobs.STATUS[state]
    assert thin_edge.told(ended(str(state)))["status"] == te == thin_edge.STATUS[state]


def test_the_page_lists_the_commands_that_are_carried() -> None:
    section = PAGE.partition("## Commands")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z_]+)`", section.partition(".")[0])) == set(requests.BRIDGED)
    assert set(requests.BRIDGED) < set(COMMANDS)


def test_a_busy_device_is_worth_another_try_and_other_refusals_are_not() -> None:
    assert aws_jobs.told(ended("rejected", code="busy"))[0] == "FAILED"
    assert aws_jobs.told(ended("rejected", code="untrusted_key"))[0] == "REJECTED"


def test_a_state_that_nobody_knows_yet_is_a_running_one() -> None:
    assert aws_jobs.told(ended("pondering"))[0] == "IN_PROGRESS"
    assert thin_edge.told(ended("pondering"))["status"] == "executing"
    assert not is_over(ended("pondering"))


@pytest.mark.parametrize("odd", ["text", 3, [1], None, {"code": [1], "detail": {"a": None}}])
def test_nonsense_of_a_device_that_was_taken_over_is_carried_as_text(odd: Any) -> None:
    operation = {
        "id": odd,
        "state": "failed",
        "phase": odd,
        "model": odd,
        "error": odd,
        "decision": odd,
        "progress": odd,
    }
    status, details = aws_jobs.told(operation)
    assert (status, all(isinstance(each, str) for each in details.values())) == ("FAILED", True)
    assert thin_edge.told(operation)["status"] == "failed"
    assert aws_jobs.told({**operation, "state": odd})[0] == "IN_PROGRESS"


def test_details_are_what_the_service_takes() -> None:
    error = {"code": "gate_failed", "detail": "a\nb\u202e" + "x" * 5000, "hint": "", "kept": None, "retryable": False}
    operation = {**ended("failed", **error), "decision": {"method": "nf4"}}
    _, details = aws_jobs.told(operation)
    assert len(details) <= aws_jobs.MAX_DETAILS
    assert details["detail"].startswith("a b xxx")
    assert len(details["detail"]) == aws_jobs.MAX_VALUE
    assert (details["retryable"], details["method"]) == ("false", "nf4")
    assert "hint" not in details
    service = JobsService()
    service.create("t", "j", {})
    ((topic, _),) = service.request(
        "$aws/things/t/jobs/j/update", json.dumps({"status": "IN_PROGRESS", "statusDetails": details}).encode()
    )
    assert topic.endswith("/accepted")


def test_ids_follow_from_the_request_alone_and_tell_whose_they_are() -> None:
    ids = {requests.operation_id("aws", thing, job, number) for thing in "ab" for job in "ab" for number in (1, 2)}
    assert len(ids) == 8
    assert all(is_id(f"{each}-x") for each in (*ids, requests.operation_id("n" * requests.MAX_NAME, "a")))
    (one, *_) = ids
    assert requests.is_of("aws", one)
    assert not requests.is_of("aw", one)
    assert not requests.is_of("aws", f"{one}-x")
    assert requests.operation_id("aws", "a", "b-1", 2) != requests.operation_id("aws", "a", "b", 12)


def test_a_command_of_thin_edge_takes_the_place_of_those_in_its_documents() -> None:
    child = EntityTopics("te", "child001")
    assert child.command("software_update", "c8y-123") == TE["software_update"]["topic"]
    assert topic_matches_sub(child.commands, TE["software_update"]["topic"])
    main = EntityTopics("te", "main")
    assert main.capability("restart").replace(thin_edge.TYPE_PREFIX, "") == TE["capability"]["topic"]
    assert main.health.replace("nibbled", "tedge-agent") == TE["health"]["topic"]
    assert main.service.replace("nibbled", "nodered") == TE["service"]["topic"]
    assert main.twin.replace("nibbled", "device_OS") == TE["twin"]["topic"]
    with pytest.raises(ValueError, match="thin-edge device 'a/b' must match"):
        EntityTopics("te", "a/b")


def test_the_statuses_are_those_of_its_documents() -> None:
    told = [state and state["status"] for state in TE["software_update"]["states"]]
    assert told == [thin_edge.INIT, thin_edge.EXECUTING, thin_edge.SUCCESSFUL, None]
    assert TE["health"]["up"]["status"] == thin_edge.health({"state": "online"})["status"]
    assert TE["health"]["down"] == thin_edge.health({"state": "offline"})


def test_a_failure_says_why_and_what_to_do() -> None:
    told = thin_edge.told(ended("rolled_back", code="trial_failed", detail="NaN", hint="mend the model"))
    assert (told["status"], told["reason"]) == ("failed", "trial_failed: NaN (mend the model)")
    assert thin_edge.told(ended("superseded"))["reason"] == "superseded"


def test_the_schema_of_jobs_is_what_make_schemas_writes() -> None:
    file = ROOT / "docs" / "aws-job.schema.json"
    assert json.loads(file.read_text(encoding="utf-8")) == schema.document(), "run make schemas"


@pytest.mark.parametrize(
    ("wanted", "is_one"),
    [
        ({"command": "rollback", "model": "kanji"}, True),
        ({"command": "set_method", "model": "kanji", "method": "nf4", "gate": {"min_agreement": 0.9}}, True),
        ({"command": "set_config", "config": {"watch": {"mode": "alarm"}}}, True),
        ({"command": "deploy", "model": "k", "artifact": {"url": "u", "sha256": "a" * 64, "size": 1}}, True),
        ({"command": "self_test", "expires_at": "2099-01-01T00:00:00Z"}, True),
        ({"command": "rollback"}, False),
        ({"command": "deploy", "model": "k"}, False),
        ({"command": "set_method", "model": "kanji", "method": "nf5"}, False),
        ({"command": "rollback", "model": "kanji", "id": "mine"}, False),
        ({"command": "reboot"}, False),
    ],
)
def test_schema_and_bridge_agree_on_what_a_job_is(wanted: JsonObject, is_one: bool) -> None:  # noqa: FBT001 - a row of the table
    document = {"nibbled": wanted}
    assert Draft202012Validator(schema.document()).is_valid(document) is is_one
    try:
        aws_jobs.request(document, "aws-1")
    except RefusalError:
        assert not is_one
    else:
        assert is_one


def test_what_nobody_named_or_numbered_is_no_execution() -> None:
    with pytest.raises(RefusalError) as refused:
        aws_jobs.execution({"jobId": "a b", "executionNumber": 1, "versionNumber": 1}, "aws-1")
    assert refused.value.code is ErrorCode.BAD_REQUEST
