"""What an operator asks a device to find out: a comparison of methods, a self-test, the log."""

from __future__ import annotations

from typing import Any

import pytest

from agent.contract.errors import ErrorCode
from agent.deployment.phases import LINES, RULES, Phase
from agent.deployment.ports import StepError
from tests.fakes.box import TOPICS, Box


def compare(box: Box, **fields: Any) -> Any:
    box.send("compare", {"id": "c-1", "model": "kanji", **fields})
    box.settle()
    return box.report("c-1")


def rows(report: Any) -> dict[str, Any]:
    return {row["method"]: row for row in report["decision"]["compare"]}


def test_a_comparison_measures_what_was_named_and_leaves_what_serves_alone(serving_box: Box) -> None:
    served = serving_box.journal.served()
    report = compare(serving_box, methods=["nf4", "int8", "fp16"])
    assert report["state"] == "succeeded"
    assert list(rows(report)) == ["nf4", "int8", "fp16"]
    row = rows(report)["int8"]
    assert (row["passes"], row["fits"], row["agreement"], row["artifact_bytes"]) == (True, True, 1.0, 1000)
    assert row["resident_bytes"] == 1200
    assert row["estimated_bytes"] > 0
    assert serving_box.journal.served() == served
    assert ("running", "loading") not in serving_box.states("c-1")


def test_a_comparison_that_names_nothing_measures_every_method_but_the_search(serving_box: Box) -> None:
    report = compare(serving_box)
    assert set(rows(report)) == {"nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "fp16", "fp32"}


def test_the_best_is_the_smallest_whose_answers_none_beats_clearly_and_it_is_a_persons_choice(serving_box: Box) -> None:
    gate = {**serving_box.builder.gate, "rows": 400, "inputs": "dataset"}
    serving_box.builder.gates = {
        "nf4-dq": {**gate, "agreement": 0.96},
        "int8": {**gate, "agreement": 0.995},
        "fp16": {**gate, "agreement": 0.997},
    }
    serving_box.builder.resident_bytes = {"nf4-dq": 1000, "int8": 2000, "fp16": 4000}
    report = compare(serving_box, methods=["fp16", "nf4-dq", "int8"], keep="best")
    assert report["state"] == "succeeded"
    assert report["decision"]["method"] == "int8"
    current = serving_box.journal.served()["kanji"].current
    assert (current.method, current.chosen_by) == ("int8", "operator")
    assert serving_box.serving() == current.id


def test_what_does_not_fit_or_cannot_be_built_is_a_row_and_never_the_best(serving_box: Box) -> None:
    serving_box.device.methods = {**serving_box.device.methods, "int8": {"ok": False, "detail": "no kernel"}}
    serving_box.builder.error = StepError(ErrorCode.BUILD_KILLED, "killed at 3 GiB")
    report = compare(serving_box, methods=["fp4-dq", "int8", "fp16"], keep="best")
    assert report["state"] == "succeeded"
    assert rows(report)["fp4-dq"]["complaints"] == ["build_killed: killed at 3 GiB"]
    assert rows(report)["int8"]["fits"] is False
    assert report["decision"]["method"] == "fp16"


def test_a_comparison_without_a_winner_fails_with_its_table(serving_box: Box) -> None:
    served = serving_box.serving()
    serving_box.builder.gate = {**serving_box.builder.gate, "agreement": 0.2, "inputs": "dataset"}
    report = compare(serving_box, methods=["fp4-dq", "int8"], keep="best", gate={"min_agreement": 0.9})
    assert (report["state"], report["error"]["code"]) == ("failed", "gate_failed")
    assert [row["passes"] for row in report["decision"]["compare"]] == [False, False]
    assert serving_box.serving() == served


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"methods": ["int3"]}, "unsupported_method"),
        ({"methods": ["auto"]}, "bad_request"),
        ({"keep": "x"}, "bad_request"),
    ],
)
def test_a_comparison_that_cannot_be_meant_is_rejected(serving_box: Box, fields: dict[str, Any], code: str) -> None:
    report = compare(serving_box, **fields)
    assert (report["state"], report["error"]["code"]) == ("rejected", code)


def test_nothing_is_compared_of_a_model_that_is_not_served(box: Box) -> None:
    assert compare(box)["error"]["code"] == "unknown_model"


def test_a_self_test_runs_now_answers_in_its_decision_and_publishes_capabilities_again(box: Box) -> None:
    before = len(box.broker.bodies(TOPICS.capabilities))
    box.send("self_test", {"id": "t-1"})
    box.settle()
    report = box.report("t-1")
    assert (report["state"], report["model"], box.device.tests) == ("succeeded", None, 1)
    assert report["decision"]["self_test"]["nf4"] == {"ok": True}
    assert len(box.broker.bodies(TOPICS.capabilities)) == before + 1


def test_a_self_test_in_which_nothing_works_fails_with_what_was_found(box: Box) -> None:
    box.device.methods = {name: {"ok": False, "detail": "no kernel"} for name in box.device.methods}
    box.send("self_test", {"id": "t-1"})
    box.settle()
    report = box.report("t-1")
    assert (report["state"], report["error"]["code"]) == ("failed", "unsupported_method")
    assert "no kernel" in report["error"]["detail"]
    assert report["decision"]["self_test"]["nf4"]["ok"] is False


@pytest.mark.parametrize("command", ["self_test", "compare"])
def test_what_only_looks_touches_nothing_when_the_agent_dies_in_it(serving_box: Box, command: str) -> None:
    served = serving_box.serving()
    serving_box.send(command, {"id": "x", **({"model": "kanji"} if command == "compare" else {})})
    serving_box.go_to("x", LINES[command][0])
    serving_box.reboot()
    serving_box.settle()
    assert serving_box.report("x")["state"] == "succeeded"
    assert serving_box.serving() == served


def test_a_comparison_can_be_canceled_while_it_builds(serving_box: Box) -> None:
    assert RULES[Phase.BUILDING].is_cancelable
    serving_box.send("compare", {"id": "c-1", "model": "kanji"})
    serving_box.go_to("c-1", Phase.BUILDING)
    serving_box.send("cancel", {"id": "stop", "operation": "c-1"})
    serving_box.settle()
    assert serving_box.report("c-1")["state"] == "canceled"


def collect(box: Box, **fields: Any) -> list[Any]:
    box.send("collect_logs", {"id": "l-1", **fields})
    box.settle()
    assert box.report("l-1")["state"] == "succeeded"
    return box.broker.bodies(TOPICS.log("l-1"))


def test_logs_come_in_chunks_in_order_of_which_the_last_says_so(box: Box) -> None:
    for number in range(400):
        box.logbook.write({"timestamp": f"2026-11-25T11:00:00.{number:06}Z", "event": "x" * 500, "number": number})
    chunks = collect(box, max_bytes=512 * 1024)
    assert len(chunks) > 3
    assert [chunk["sequence"] for chunk in chunks] == list(range(len(chunks)))
    assert [chunk["last"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [entry["number"] for chunk in chunks for entry in chunk["entries"]] == list(range(400))
    sizes = [len(report.payload) for report in box.broker.log if report.topic == TOPICS.log("l-1")]
    assert max(sizes) <= 48 * 1024


def test_the_newest_entries_are_kept_when_not_all_may_be_sent(box: Box) -> None:
    for number in range(100):
        box.logbook.write({"timestamp": f"2026-11-25T11:00:00.{number:06}Z", "event": "x" * 100, "number": number})
    (chunk,) = collect(box, max_bytes=2000)
    assert chunk["cut"] is True
    numbers = [entry["number"] for entry in chunk["entries"]]
    assert numbers == list(range(100 - len(numbers), 100))


def test_entries_before_the_time_asked_for_are_left_out(box: Box) -> None:
    for second in (1, 2, 3):
        box.logbook.write({"timestamp": f"2026-11-25T11:00:0{second}.000000Z", "event": str(second)})
    (chunk,) = collect(box, since="2026-11-25T12:00:02+01:00")
    assert [entry["event"] for entry in chunk["entries"]] == ["2", "3"]
    assert chunk["cut"] is False


def test_an_empty_log_is_one_empty_chunk(box: Box) -> None:
    (chunk,) = collect(box)
    assert (chunk["entries"], chunk["last"]) == ([], True)


def test_the_same_request_again_sends_no_second_copy(box: Box) -> None:
    box.logbook.write({"timestamp": "2026-11-25T11:00:00.000000Z", "event": "one"})
    collect(box)
    assert len(collect(box)) == 1
