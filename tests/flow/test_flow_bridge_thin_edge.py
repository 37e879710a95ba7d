"""Commands of thin-edge.io on a device with the real engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent.deployment.phases import Phase, State
from agent.fleet.bridge import requests, thin_edge
from tests.fakes import fleet
from tests.fakes.box import deploy_body
from tests.fakes.bridged import ThinEdgeBridged

if TYPE_CHECKING:
    from tests.fakes.box import Box

JsonObject = dict[str, Any]
ROOT = "te/device/main///"
DEPLOY = f"{ROOT}cmd/nibbled_deploy/c8y-1"
FIELDS = {key: value for key, value in deploy_body("any").items() if key != "id"}


def operation(kind: str = "nibbled_deploy", request: str = "c8y-1") -> str:
    return requests.operation_id("te", ROOT, kind, request)


@pytest.fixture
def te(box: Box) -> ThinEdgeBridged:
    return ThinEdgeBridged(box)


def test_a_command_goes_from_init_to_successful_with_what_was_asked_for(te: ThinEdgeBridged) -> None:
    te.write(DEPLOY, {"status": "init", **FIELDS, "method": "nf4", "extra": {"of": "another participant"}})
    te.pump()
    assert te.statuses(DEPLOY)[0] == "init"
    assert te.statuses(DEPLOY)[-1] == "successful"
    found = te.state(DEPLOY)
    assert {key: found[key] for key in FIELDS} == FIELDS
    assert found["extra"] == {"of": "another participant"}
    assert found["nibbled"]["operation"] == operation()
    assert found["nibbled"]["method"] == "nf4"
    assert (te.box.serving() or "").endswith("-nf4")


def test_waiting_and_running_are_told_apart(te: ThinEdgeBridged) -> None:
    te.box.deploy("mine")
    te.box.go_to("mine", Phase.BUILDING)
    te.write(DEPLOY, {"status": "init", **FIELDS, "method": "fp4"})
    te.step()
    te.box._drain()
    te.step()
    assert te.state(DEPLOY)["status"] == "scheduled"
    te.box.go_to(operation(), Phase.BUILDING)
    te.step()
    found = te.state(DEPLOY)
    assert (found["status"], found["nibbled"]["phase"]) == ("executing", "building")
    te.pump()
    assert te.statuses(DEPLOY) == ["init", "scheduled", "executing", "successful"]


def test_a_status_that_is_left_out_means_init(te: ThinEdgeBridged) -> None:
    topic = f"{ROOT}cmd/nibbled_self_test/1"
    te.write(topic, {})
    te.pump()
    assert te.state(topic)["status"] == "successful"


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("nibbled_rollback", {"model": "nobody"}, "unknown_model: "),
        ("nibbled_rollback", {}, "bad_request: rollback: model: Field required"),
        ("nibbled_reboot", {}, "unsupported_command: unknown command 'reboot'"),
        ("nibbled_deploy", {**FIELDS, "id": "x"}, "bad_request: deploy: id cannot be asked for"),
        ("nibbled_deploy", {**FIELDS, "comment": "x" * 70_000}, "bad_request: the payload is 70"),
    ],
)
def test_what_is_refused_is_failed_with_a_reason(
    te: ThinEdgeBridged, kind: str, fields: JsonObject, reason: str
) -> None:
    topic = f"{ROOT}cmd/{kind}/1"
    te.write(topic, {"status": "init", **fields})
    te.pump()
    found = te.state(topic)
    assert found["status"] == "failed"
    assert found["reason"].startswith(reason)
    assert found["nibbled"]["error"]["code"] == reason.partition(":")[0]


def test_commands_of_others_are_not_touched(te: ThinEdgeBridged) -> None:
    topic = f"{ROOT}cmd/software_update/c8y-123"
    te.write(topic, {"status": "init", "updateList": []})
    te.pump()
    assert te.statuses(topic) == ["init"]
    assert te.sent == []


def test_one_that_is_cleared_before_its_end_is_canceled_and_stays_cleared(te: ThinEdgeBridged) -> None:
    te.write(DEPLOY, {"status": "init", **FIELDS})
    te.step()
    te.box.go_to(operation(), Phase.BUILDING)
    te.step()
    te.write(DEPLOY, None)
    te.pump()
    assert te.box.report(operation())["state"] == "canceled"
    assert DEPLOY not in te.retained


def test_one_that_is_cleared_after_its_end_is_only_forgotten(te: ThinEdgeBridged) -> None:
    te.write(DEPLOY, {"status": "init", **FIELDS})
    te.pump()
    te.write(DEPLOY, None)
    te.pump()
    assert [each.name for each in te.sent] == ["deploy"]
    assert DEPLOY not in te.retained


def begin(te: ThinEdgeBridged) -> None:
    """Let a command run on a device whose capabilities are told."""
    te.box.connect()
    te.write(DEPLOY, {"status": "init", **FIELDS})
    te.step()
    te.box.go_to(operation(), Phase.BUILDING)
    te.step()


def test_one_that_is_cleared_while_no_bridge_runs_is_canceled_when_one_runs_again(te: ThinEdgeBridged) -> None:
    begin(te)
    del te.retained[DEPLOY]
    te.restart()
    te.pump()
    assert te.box.report(operation())["state"] == "canceled"
    assert [each.name for each in te.sent] == ["deploy", "cancel"]


def test_one_that_is_cleared_while_no_bridge_runs_and_reaches_the_device_late_is_canceled(te: ThinEdgeBridged) -> None:
    te.box.connect()
    te.pump()
    te.box.send = lambda *_a, **_k: []  # type: ignore[method-assign]  # its session keeps it
    te.write(DEPLOY, {"status": "init", **FIELDS})
    te.step()
    del te.box.send, te.retained[DEPLOY]
    te.restart()
    te.step()
    te.box.send("deploy", te.sent[0].body)
    te.box.go_to(operation(), Phase.BUILDING)
    te.pump()
    assert te.box.report(operation())["state"] == "canceled"


def test_a_broker_that_forgot_everything_cancels_nothing(te: ThinEdgeBridged) -> None:
    begin(te)
    te.retained.clear()
    te.restart()
    te.pump()
    assert te.box.report(operation())["state"] == "succeeded"


def test_a_command_that_was_spoilt_is_there_and_nothing_is_canceled_or_written_over(te: ThinEdgeBridged) -> None:
    begin(te)
    te.retained[DEPLOY] = b"{"
    te.restart()
    te.pump()
    assert te.box.report(operation())["state"] == "succeeded"
    assert te.retained[DEPLOY] == b"{"


def test_the_operations_of_another_bridge_and_of_people_are_not_touched(te: ThinEdgeBridged) -> None:
    te.box.connect()
    te.pump()
    others = (requests.operation_id("te2", ROOT, "nibbled_deploy", "c8y-1"), "mine")
    for each, method in zip(others, ("nf4", "fp4"), strict=True):
        te.box.deploy(each, method=method)
        te.box.go_to(each, Phase.BUILDING)
        te.restart()
        te.pump()
    assert [te.box.report(each)["state"] for each in others] == ["succeeded"] * 2


def test_a_state_that_crosses_with_the_clearing_does_not_bring_the_command_back(te: ThinEdgeBridged) -> None:
    begin(te)
    te.box.go_to(operation(), Phase.CANARY)
    on_its_way: list[tuple[str, bytes]] = []
    te.publish = lambda topic, payload, *, retain: on_its_way.append((topic, payload))  # type: ignore[method-assign]  # noqa: ARG005
    te.step()
    del te.publish
    te.write(DEPLOY, None)
    for topic, payload in on_its_way:
        te.publish(topic, payload, retain=True)
    assert DEPLOY in te.retained
    te.pump()
    assert DEPLOY not in te.retained
    assert te.box.report(operation())["state"] == "canceled"


def test_a_command_that_was_copied_from_one_that_ended_is_a_new_one(te: ThinEdgeBridged) -> None:
    te.write(DEPLOY, {"status": "init", **FIELDS})
    te.pump()
    again = f"{ROOT}cmd/nibbled_deploy/c8y-2"
    te.write(again, {**te.state(DEPLOY), "status": "init"})
    te.pump()
    assert te.state(again)["status"] == "successful"
    assert te.state(again)["nibbled"]["operation"] == operation(request="c8y-2")


@pytest.mark.parametrize("phase", [Phase.DOWNLOADING, Phase.BUILDING, Phase.CANARY, Phase.TRIAL])
def test_a_bridge_that_is_killed_at_any_time_goes_on_and_the_device_does_it_once(
    te: ThinEdgeBridged, phase: Phase
) -> None:
    te.write(DEPLOY, {"status": "init", **FIELDS})
    te.step()
    te.restart()
    te.box.go_to(operation(), phase)
    te.step()
    te.restart()
    te.pump()
    te.restart()
    te.pump()
    assert te.state(DEPLOY)["status"] == "successful"
    assert [state for state, _ in te.box.states(operation())].count("accepted") == 1


def test_a_command_for_a_device_that_is_away_waits_at_the_broker(te: ThinEdgeBridged) -> None:
    te.turn(is_online=False)
    te.write(DEPLOY, {"status": "init", **FIELDS})
    te.pump()
    assert (te.statuses(DEPLOY), te.sent) == (["init"], [])
    te.restart()
    te.turn(is_online=True)
    te.pump()
    assert te.state(DEPLOY)["status"] == "successful"


def test_a_command_that_got_lost_is_sent_again_as_it_was(te: ThinEdgeBridged) -> None:
    te.box.send = lambda *_a, **_k: []  # type: ignore[method-assign]
    te.write(DEPLOY, {"status": "init", **FIELDS})
    te.pump()
    te.now_s += 30.0
    te.pump()
    assert len(te.sent) == 1
    del te.box.send
    te.now_s += 31.0
    te.pump()
    assert te.sent[0].body == te.sent[1].body
    assert te.state(DEPLOY)["status"] == "successful"


def test_old_echoes_of_the_bridge_s_own_words_change_nothing(te: ThinEdgeBridged) -> None:
    te.write(DEPLOY, {"status": "init", **FIELDS})
    te.step()
    te.box.go_to(operation(), Phase.BUILDING)
    te.step()
    old = te.retained[DEPLOY]
    te.pump()
    length = len(te.history)
    te.machine.take(DEPLOY, old, te.now_s)
    te.pump()
    assert len(te.history) == length


def test_what_the_device_is_is_published_once_and_again_when_it_changes(te: ThinEdgeBridged) -> None:
    te.box.send("status", {"id": "s"})
    te.box.deploy("d", method="nf4")
    te.box.settle()
    te.pump()
    assert te.state("te/device/main/service/nibbled/status/health")["status"] == "up"
    assert te.state("te/device/main/service/nibbled")["@type"] == "service"
    assert te.state(f"{ROOT}twin/nibbled")["models"]["kanji"]["method"] == "nf4"
    length = len(te.history)
    te.pump()
    assert len(te.history) == length
    te.turn(is_online=False)
    te.pump()
    assert te.state("te/device/main/service/nibbled/status/health")["status"] == "down"


def test_capabilities_are_those_of_the_device_that_a_bridge_carries(te: ThinEdgeBridged) -> None:
    te.box.connect()
    te.box.settle()
    te.pump()
    found = {topic.rpartition("/")[2] for topic in te.retained if topic.startswith(f"{ROOT}cmd/nibbled_")}
    assert found == {f"nibbled_{name}" for name in requests.BRIDGED}
    assert all(te.state(f"{ROOT}cmd/{name}") == {} for name in found)


def test_every_state_of_ours_has_one_of_theirs() -> None:
    assert set(thin_edge.STATUS) == set(State)
    ended = {state for state, status in thin_edge.STATUS.items() if status in ("successful", "failed")}
    assert ended == {state for state in State if state.is_terminal}


def test_health_and_twin_bear_what_is_missing() -> None:
    assert thin_edge.health({"state": "offline", "at": None}) == {"status": "down"}
    assert thin_edge.twin({}, {}) == {"agent": None, "models": {}}
    told = thin_edge.twin({"kanji": fleet.model()}, fleet.presence())
    assert told["models"]["kanji"]["version"] == "1"
