"""Whatever happens in whatever order, both sides of a bridge agree in the end, and each request is done once."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from agent.fleet.bridge import aws_jobs, requests, thin_edge
from agent.fleet.shapes import is_over
from tests.fakes.aws_jobs import TERMINAL
from tests.fakes.box import TOPICS, Box, deploy_body
from tests.fakes.bridged import THING, JobsBridged, ThinEdgeBridged

JOBS = ("j-0", "j-1", "j-2")
DOCUMENTS: dict[str, dict[str, Any]] = {
    "j-0": {
        "command": "deploy",
        **{key: value for key, value in deploy_body("any", method="nf4").items() if key != "id"},
    },
    "j-1": {"command": "set_method", "model": "kanji", "method": "fp4"},
    "j-2": {"command": "rollback", "model": "kanji"},
}
HAPPENS = st.lists(
    st.one_of(
        st.tuples(st.just("request"), st.sampled_from(JOBS)),
        st.tuples(st.just("take back"), st.sampled_from(JOBS)),
        st.tuples(st.just("take back unheard"), st.sampled_from(JOBS)),
        st.tuples(
            st.sampled_from(["carry", "work", "restart", "reboot", "leave", "return", "lose", "wait"]), st.just("")
        ),
    ),
    max_size=30,
)


def work(box: Box) -> None:
    """Let the device take one step."""
    box._drain()
    box.runner.pump()


def common(bridged: JobsBridged | ThinEdgeBridged, what: str) -> None:
    """Let happen what can happen to every bridge."""
    if what == "carry":
        bridged.step()
    elif what == "work":
        work(bridged.box)
    elif what == "restart":
        bridged.restart()
    elif what == "reboot":
        bridged.box.reboot()
    elif what in ("leave", "return"):
        bridged.turn(is_online=what == "return")
    elif what == "wait":
        bridged.now_s += 11.0


def settle(bridged: JobsBridged | ThinEdgeBridged) -> None:
    """Let everybody be there, and time pass."""
    bridged.turn(is_online=True)
    for _ in range(24):
        bridged.now_s += 61.0
        bridged.pump()


def runs(box: Box) -> Counter[str]:
    """Return how often each operation was begun."""
    events = box.broker.bodies(TOPICS.event)
    return Counter(body["id"] for body in events if body["event"] == "command_accepted")


@given(HAPPENS)
@example([("request", "j-0"), *[("carry", "")] * 3, ("work", ""), ("take back", "j-0"), ("restart", "")])
def test_jobs_and_operations_agree_in_the_end(happens: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bridged = JobsBridged(Box(Path(directory)))
        bridged.create("theirs", {"operation": "reboot"})
        for what, job in happens:
            pending = [each.job for each in bridged.service.pending(THING)]
            if what == "request" and job not in pending:
                bridged.create(job, {"nibbled": DOCUMENTS[job]})
            elif what == "take back" and job in pending:
                bridged.hear(bridged.service.end(THING, job, "CANCELED"))
            elif what == "take back unheard" and job in pending:
                bridged.service.end(THING, job, "CANCELED")
            elif what == "lose":
                bridged.loses_answers += 1
            else:
                common(bridged, what)
        settle(bridged)
        for each in bridged.service.executions:
            operation = bridged.box.report(requests.operation_id("aws", THING, each.job, each.number))
            if each.job == "theirs":
                assert (each.status, operation) == ("QUEUED", None)
            elif each.status != "CANCELED":
                assert operation is not None
                assert each.status == aws_jobs.told(operation)[0]
                assert each.status in TERMINAL
            else:
                assert operation is None or is_over(operation)
        assert set(runs(bridged.box).values()) <= {1}
        bridged.box.journal.close()


@given(HAPPENS)
def test_commands_of_thin_edge_and_operations_agree_in_the_end(happens: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bridged = ThinEdgeBridged(Box(Path(directory)))
        bridged.box.connect()
        root, asked = "te/device/main///", 0
        live: dict[str, str] = {}
        for what, job in happens:
            if what == "request" and job not in live:
                fields = {key: value for key, value in DOCUMENTS[job].items() if key != "command"}
                asked += 1
                live[job] = f"{root}cmd/nibbled_{DOCUMENTS[job]['command']}/{asked}"
                bridged.write(live[job], {"status": "init", **fields})
            elif what == "take back" and job in live:
                bridged.write(live.pop(job), None)
            elif what == "take back unheard" and job in live:
                del bridged.retained[live.pop(job)]
                bridged.restart()
            else:
                common(bridged, what)
        settle(bridged)
        for topic in live.values():
            kind, request = topic.split("/")[-2:]
            operation = bridged.box.report(requests.operation_id("te", root, kind, request))
            state = bridged.state(topic)
            assert state["status"] == thin_edge.told(operation)["status"]
            assert state["status"] in (thin_edge.SUCCESSFUL, thin_edge.FAILED)
            assert state["nibbled"]["state"] != "canceled", "nobody cleared it"
        commands = {topic for topic in bridged.retained if "/cmd/" in topic and topic.count("/") == root.count("/") + 2}
        assert commands == set(live.values())
        assert set(runs(bridged.box).values()) <= {1}
        bridged.box.journal.close()
