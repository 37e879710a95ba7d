"""Commands that succeed: every phase is reported, and what is served is what was asked for."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from agent.deployment.inbox import Connected
from agent.deployment.phases import LINES, Phase, State
from agent.planning.matrix import Row
from agent.planning.plan import Policy
from tests.fakes.box import CONTENT, TOPICS, URL, Box
from tests.fakes.device import GOOD_GATE, checkpoint, sha256

if TYPE_CHECKING:
    from pathlib import Path


def line(command: str) -> list[tuple[str, str | None]]:
    running = [("running", str(phase)) for phase in LINES[command]]
    return [("accepted", "queued"), *running, ("succeeded", None)]


def test_a_deploy_is_reported_phase_by_phase_and_ends_in_serving(box: Box) -> None:
    acknowledged = box.deploy("d-1")
    box.settle()

    assert box.states("d-1") == line("deploy")
    assert [phase for _, phase in line("deploy")][1:-1] == [
        "downloading", "verifying", "planning", "building", "loading", "canary", "activating", "trial",
    ]  # fmt: skip
    assert acknowledged == ["ack"]
    assert box.serving() == f"{sha256(CONTENT)[:12]}-{sha256(CONTENT)[:12]}-nf4"
    assert box.sources.fetched == [URL]


def test_the_decision_record_grows_from_the_plan_to_the_trial(box: Box) -> None:
    box.deploy("d-1")
    box.settle()

    decision = box.report("d-1")["decision"]
    assert decision["scenario"] == "edge"
    assert decision["candidates"][0]["fits"] is True
    assert decision["measured"]["gate"]["agreement"] == GOOD_GATE["agreement"]
    assert decision["measured"]["canary"]["agreement"] == 1.0
    assert decision["measured"]["residency"]["reason"] == "packed, as configured"
    assert (decision["measured"]["texts"], decision["measured"]["compile"]) == (None, None)
    assert decision["measured"]["trial"]["requests"] == 0
    assert decision["cached"] is False


def test_every_transition_leaves_a_line_in_the_audit_trail(box: Box) -> None:
    box.deploy("d-1")
    box.settle()

    names = [body["event"] for body in box.broker.bodies(TOPICS.event)]
    planned = LINES["deploy"].index(Phase.PLANNING) + 1
    moved = ["operation_moved"] * len(LINES["deploy"])
    assert names == ["command_accepted", *moved[:planned], "decided", *moved[planned:], "operation_ended"]


def test_set_method_builds_from_the_stored_checkpoint_without_a_download(serving_box: Box) -> None:
    assert serving_box.states("second") == line("set_method")
    assert serving_box.sources.fetched == [URL]
    assert [job["method"] for job in serving_box.builder.jobs] == ["fp4", "nf4"]


def test_switching_back_takes_the_cached_artifact(serving_box: Box) -> None:
    serving_box.send("set_method", {"id": "third", "model": "kanji", "method": "fp4"})
    serving_box.settle()

    assert serving_box.report("third")["decision"]["cached"] is True
    assert len(serving_box.builder.jobs) == 2
    assert (serving_box.serving() or "").endswith("-fp4")


def test_a_rollback_serves_the_release_before(serving_box: Box) -> None:
    serving_box.send("rollback", {"id": "back", "model": "kanji"})
    serving_box.settle()

    assert serving_box.states("back") == line("rollback")
    assert (serving_box.serving() or "").endswith("-fp4")


def test_after_an_operation_only_the_serving_release_stays_in_memory(serving_box: Box) -> None:
    assert serving_box.server.held("kanji") == {serving_box.serving()}


def test_undeploy_stops_serving_and_removes_the_files(serving_box: Box) -> None:
    serving_box.send("undeploy", {"id": "gone", "model": "kanji"})
    serving_box.settle()

    assert serving_box.states("gone") == line("undeploy")
    assert serving_box.serving() is None
    assert serving_box.store.used_bytes() == 0


def test_a_deploy_of_what_is_served_ends_in_planning_and_builds_nothing(serving_box: Box) -> None:
    serving_box.deploy("again", method="nf4")
    serving_box.settle()

    assert serving_box.states("again")[-2:] == [("running", "planning"), ("succeeded", None)]
    assert "already being served" in serving_box.report("again")["decision"]["reason"]
    assert len(serving_box.builder.jobs) == 2
    item = serving_box.journal.served()["kanji"]
    assert item.previous is not None
    assert item.previous.method == "fp4"


def test_a_new_data_set_is_a_reason_to_build_again(serving_box: Box) -> None:
    data = checkpoint(16, seed=9)
    serving_box.sources.files["https://models.example/eval"] = data
    gate = {"dataset": {"url": "https://models.example/eval", "sha256": sha256(data)}}
    serving_box.deploy("measured", method="nf4", gate=gate)
    serving_box.settle()

    assert serving_box.states("measured") == line("deploy")
    assert serving_box.builder.jobs[-1]["gate"]["dataset"] == str(serving_box.store.source(sha256(data)))
    assert serving_box.journal.served()["kanji"].dataset == sha256(data)


def test_the_data_set_given_last_judges_later_methods(serving_box: Box) -> None:
    data = checkpoint(16, seed=9)
    serving_box.sources.files["https://models.example/eval"] = data
    gate = {"dataset": {"url": "https://models.example/eval", "sha256": sha256(data)}}
    serving_box.deploy("measured", method="nf4", gate=gate)
    serving_box.settle()
    serving_box.send("set_method", {"id": "later", "model": "kanji", "method": "fp4-dq"})
    serving_box.settle()

    assert serving_box.builder.jobs[-1]["gate"]["dataset"] == str(serving_box.store.source(sha256(data)))


def test_replan_decides_again_with_the_memory_of_today(serving_box: Box) -> None:
    serving_box.device.available_bytes = 512 * 2**20 + 600_000
    serving_box.send("replan", {"id": "tight", "model": "kanji"})
    serving_box.settle()

    assert serving_box.report("tight")["decision"]["scenario"] == "edge-limited-memory"
    assert (serving_box.serving() or "").endswith("-nf4-dq")


def test_operations_wait_for_each_other_and_run_in_the_order_of_arrival(box: Box) -> None:
    box.deploy("one", method="nf4")
    box.send("set_method", {"id": "two", "model": "kanji", "method": "fp4"})
    box.send("rollback", {"id": "three", "model": "kanji"})
    box.go_to("one", Phase.BUILDING)
    assert [box.record(name).state for name in ("two", "three")] == [State.ACCEPTED, State.ACCEPTED]

    box.settle()
    ends = [body["id"] for body in box.broker.bodies(TOPICS.event) if body["event"] == "operation_ended"]
    assert ends == ["one", "two", "three"]
    assert (box.serving() or "").endswith("-nf4")


def test_at_no_time_do_two_operations_run(box: Box) -> None:
    for number in range(4):
        box.deploy(f"d-{number}", method=("nf4", "fp4")[number % 2])
    running = 0
    for _ in range(200):
        box._drain()
        states = [operation.state for operation in box.engine.open_operations]
        running = max(running, states.count(State.RUNNING))
        if not box.runner.pump():
            break
    assert running == 1
    assert not box.engine.open_operations


def test_a_trial_lasts_as_long_as_the_gate_says(box: Box) -> None:
    box.deploy("d-1", gate={"soak_s": 0.01})
    box.go_to("d-1", Phase.TRIAL)
    for _ in range(2):
        box.server.before("status", lambda: None)
    box.server.before("status", lambda: box.clock.advance(30.0))
    box.settle()

    assert box.report("d-1")["state"] == "succeeded"
    assert box.report("d-1")["decision"]["measured"]["trial"]["seconds"] == 30.0


def test_status_publishes_everything_again(serving_box: Box) -> None:
    before = len(serving_box.broker.bodies(TOPICS.reported))
    serving_box.send("status", {"id": "s-1"})
    serving_box.settle()

    assert len(serving_box.broker.bodies(TOPICS.reported)) == before + 1
    assert serving_box.broker.retained(TOPICS.capabilities)["commands"]
    assert serving_box.report("s-1")["state"] == "succeeded"
    assert serving_box.statuses == 1


def test_a_new_connection_is_told_every_open_operation(box: Box) -> None:
    box.deploy("d-1")
    box.go_to("d-1", Phase.BUILDING)
    before = len(box.broker.bodies(TOPICS.operation("d-1")))
    box.engine.post(Connected())
    box._drain()

    assert len(box.broker.bodies(TOPICS.operation("d-1"))) == before + 1
    assert box.report("d-1")["phase"] == "building"


def test_reports_made_without_a_connection_arrive_after_it(box: Box) -> None:
    box.transport.is_connected = False
    box.deploy("d-1")
    box.settle()
    assert box.broker.log == []

    box.transport.is_connected = True
    box.engine.post(Connected())
    box.settle()
    assert box.report("d-1")["state"] == "succeeded"
    assert box.serving() is not None


def test_the_sender_is_answered_where_it_asked_with_the_very_bytes_of_its_correlation(box: Box) -> None:
    box.deploy("d-1")
    box.settle()
    box.send("rollback", {"id": "r-1", "model": "kanji"}, response_topic="answers/me", correlation=b"\xff\x00\xfe")
    box.send("status", {"id": "s-1", "response_topic": "answers/me", "correlation_id": "text"})
    box.settle()

    told = [(json.loads(item.payload)["id"], item.correlation) for item in box.broker.log if item.topic == "answers/me"]
    assert told == [("r-1", b"\xff\x00\xfe"), ("s-1", b"text")]


def test_a_partial_download_is_kept_for_the_next_try(box: Box) -> None:
    box.sources.cut_after = 100
    box.deploy("d-1")
    box.settle()
    assert box.report("d-1")["error"]["code"] == "download_failed"
    assert box.report("d-1")["error"]["retryable"] is True

    box.deploy("d-2")
    box.settle()
    assert box.report("d-2")["state"] == "succeeded"


def test_the_journal_of_a_device_without_a_past_serves_nothing(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.engine.recover()
    box.settle()

    assert box.serving() is None
    assert not box.engine.open_operations
    box.journal.close()


def test_what_the_gate_refuses_under_auto_gives_way_to_the_next_better_method(box: Box) -> None:
    box.builder.gates["nf4"] = {**GOOD_GATE, "agreement": 0.9}
    box.builder.gates["mixed"] = {**GOOD_GATE, "agreement": 0.94}

    box.deploy("d-1")
    box.settle()

    decision = box.report("d-1")["decision"]
    assert box.serving() == f"{sha256(CONTENT)[:12]}-{sha256(CONTENT)[:12]}-int8"
    assert [job["method"] for job in box.builder.jobs] == ["nf4", "mixed", "int8"]
    assert (decision["planned"], decision["method"]) == ("nf4", "int8")
    assert decision["overruled"] == [
        "nf4: agreement 0.9000 with the source, 0.95 demanded",
        "mixed: agreement 0.9400 with the source, 0.95 demanded",
    ]
    assert [each["passes"] for each in decision["evidence"]] == [False, False, True]
    decided = [body for body in box.broker.bodies(TOPICS.event) if body["event"] == "decided"]
    assert [(body["id"], body["method"]) for body in decided] == [("d-1", "nf4"), ("d-1", "int8")]
    assert decided[0]["scenario"] == decision["scenario"]
    assert decided[1]["reason"].startswith("measurement overruled the plan")
    assert decision["measured"]["gate"]["agreement"] == GOOD_GATE["agreement"]


def test_a_mix_is_sought_from_the_planned_method_with_what_the_gate_demands(box: Box) -> None:
    box.builder.gates["nf4"] = {**GOOD_GATE, "agreement": 0.9}

    box.deploy("d-1", gate={"min_agreement": 0.97})
    box.settle()

    job = box.builder.jobs[-1]
    assert job["mixed"] == {"base": "nf4", "budget_bytes": None}
    assert job["gate"]["thresholds"]["min_agreement"] == 0.97
    release = box.serving()
    assert release is not None
    assert re.search(r"-mixed-[0-9a-f]{8}$", release)


def test_a_replan_that_arrives_at_what_is_served_swaps_nothing(box: Box) -> None:
    box.builder.gates["nf4"] = {**GOOD_GATE, "agreement": 0.9}
    box.deploy("d-1")
    box.settle()
    served = box.serving()
    built = len(box.builder.jobs)

    box.send("replan", {"id": "r-1", "model": "kanji"})
    box.settle()

    assert box.report("r-1")["state"] == "succeeded"
    assert box.report("r-1")["decision"]["reason"].endswith("; it is already being served")
    assert (box.serving(), len(box.builder.jobs)) == (served, built)
    assert ("running", "loading") not in box.states("r-1")


def test_what_answers_clearly_better_in_no_more_memory_overrules_the_matrix(box: Box) -> None:
    box.policy = Policy((Row("own", ("fp4",), "our choice"),))
    box.builder.gates["fp4"] = {**GOOD_GATE, "rows": 400, "agreement": 0.96}
    box.builder.gates["nf4"] = {**GOOD_GATE, "rows": 400, "agreement": 0.99}
    box.builder.gate = {**GOOD_GATE, "rows": 400, "agreement": 0.97}

    box.deploy("d-1")
    box.settle()

    decision = box.report("d-1")["decision"]
    assert (decision["planned"], decision["method"]) == ("fp4", "nf4")
    told = "nf4 takes no more memory than fp4 and answers better: agreement 99.00% on 400 rows against agreement 96.00%"
    assert decision["overruled"] == [f"{told} on 400 rows"]
    assert {each["method"] for each in decision["evidence"]} == {"fp4", "fp4-dq", "nf4", "nf4-dq"}


def test_the_matrix_alone_decides_where_the_operator_wants_it_so(box: Box) -> None:
    box.policy = Policy((Row("own", ("fp4",), "our choice"),), matrix_only=True)
    box.builder.gates["fp4"] = {**GOOD_GATE, "agreement": 0.96}
    box.deploy("d-1")
    box.settle()
    assert [job["method"] for job in box.builder.jobs] == ["fp4"]
    assert box.report("d-1")["state"] == "succeeded"

    box.builder.gates["fp4"] = {**GOOD_GATE, "agreement": 0.5}
    box.deploy("d-2", content=checkpoint(50_000), url="https://models.example/other.pt", method="auto")
    box.sources.files["https://models.example/other.pt"] = checkpoint(50_000)
    box.settle()
    assert box.report("d-2")["error"]["code"] == "gate_failed"
    assert [job["method"] for job in box.builder.jobs] == ["fp4", "fp4"]


def test_a_method_that_was_asked_for_is_never_replaced_by_another(box: Box) -> None:
    box.builder.gates["nf4"] = {**GOOD_GATE, "agreement": 0.9}

    box.deploy("d-1", method="nf4")
    box.settle()

    assert box.report("d-1")["error"]["code"] == "gate_failed"
    assert [job["method"] for job in box.builder.jobs] == ["nf4"]


def test_memory_that_holds_one_form_but_not_two_lets_the_old_one_go_first(serving_box: Box) -> None:
    serving_box.send("set_method", {"id": "roomy", "model": "kanji", "method": "fp4"})
    serving_box.settle()
    needed = serving_box.report("roomy")["decision"]["estimates"]["fp4"]
    held = 1200  # what the simulated builder says that every release takes
    exact = 512 * 2**20 + needed["weights_bytes"] + needed["working_bytes"]

    serving_box.device.available_bytes = exact - held
    serving_box.send("set_method", {"id": "tight", "model": "kanji", "method": "nf4"})
    serving_box.settle()
    told = serving_box.report("tight")
    assert (told["state"], told["decision"]["admission"]) == ("succeeded", "unload_first")
    assert told["decision"]["measured"]["gap_ms"] == serving_box.server.gap_ms
    assert "the old one goes first" in " ".join(told["decision"]["explanation"])

    serving_box.device.available_bytes = exact - held - 1
    serving_box.send("set_method", {"id": "tighter", "model": "kanji", "method": "fp4"})
    serving_box.settle()
    assert serving_box.report("tighter")["error"]["code"] == "insufficient_memory"
    assert (serving_box.serving() or "").endswith("-nf4")
