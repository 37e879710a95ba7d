"""Scenarios of a fleet that no other test tells whole: repeated, late, retained and pointless commands, restarts."""

from __future__ import annotations

import json
import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness.operator import MODEL, RUNNING
from tests.e2e.harness.processes import resident_bytes
from tests.faults.box import GATE, Box, eventually
from tests.faults.harness_network import minutes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.harness.world import World

WILL_DELAY_S = 30.0
"""After which a broker tells that a device is gone: protocol.md, presence."""
SWITCHES = 50

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

COPIES = 10
LONG_AGO = "2020-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def box(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    module = "tests.e2e.harness.synchronised_agent"
    box = Box("scenarios", tmp_path_factory.mktemp("scenarios"), world, module=module)
    box.start()
    box.serve()
    yield box
    box.agent.close()


def events(box: Box, operation: str, mark: int) -> list[str]:
    """Return what the audit trail says of an operation since a mark."""
    said = box.operator.subscriber.on(box.operator.topic("event"), since=mark)
    return [body["event"] for body in said if body.get("id") == operation]


def test_what_is_reported_is_what_answers(box: Box) -> None:
    served = box.operator.served()
    with urllib.request.urlopen(f"{box.agent.url}/models/{MODEL}", timeout=10) as response:  # noqa: S310 - loopback
        told = json.load(response)
    assert told["versions"] == [served["version"]]
    assert box.answers() == served["version"]


def test_ten_copies_of_a_command_at_once_are_executed_once_and_so_are_later_ones(box: Box) -> None:
    operator, mark = box.operator, box.operator.mark()
    body: dict[str, Any] = {"id": "ten", "model": MODEL, "method": "fp4", "gate": GATE}
    with ThreadPoolExecutor(COPIES) as pool:
        list(pool.map(lambda _number: operator.send("set_method", **body), range(COPIES)))
    assert operator.result("ten", since=mark)["state"] == "succeeded"
    later = operator.mark()
    operator.send("set_method", **body)
    assert operator.result("ten", since=later)["state"] == "succeeded"
    operator.result(operator.send("status"))
    assert events(box, "ten", mark).count("command_accepted") == 1
    eventually(lambda: "operation_ended" in events(box, "ten", mark), "the end is on the audit trail")
    assert events(box, "ten", mark).count("operation_ended") == 1
    assert {state["state"] for state in operator.history("ten", since=mark)} - RUNNING == {"succeeded"}


def test_a_switch_to_what_is_served_changes_nothing_and_one_to_an_unknown_method_is_rejected(box: Box) -> None:
    before = box.operator.served()
    report = box.operator.result(box.switch(before["method"]))
    assert report["state"] == "succeeded"
    assert "already being served" in report["decision"]["reason"]
    assert box.operator.served() == before
    report = box.operator.result(box.switch("nf3"))
    assert (report["state"], report["error"]["code"]) == ("rejected", "unsupported_method")
    assert box.operator.served() == before


def test_a_rollback_after_a_failed_deploy_goes_to_what_was_served_before(box: Box, world: World) -> None:
    version = box.operator.served()["version"]
    box.serve()
    broken = box.operator.manifest(world.files.host("broken.pt", b"PK\x03\x04 and nothing else"))
    assert box.operator.result(box.operator.deploy(broken, gate=GATE))["state"] == "failed"
    report = box.operator.result(box.operator.send("rollback", model=MODEL))
    assert report["state"] == "succeeded", report["error"]
    assert box.operator.served()["version"] == box.answers() == version
    again = box.operator.result(box.operator.send("rollback", model=MODEL))
    assert again["error"]["code"] == "nothing_to_roll_back"


def test_restarts_answer_what_came_meanwhile_once_and_never_run_what_is_retained(box: Box) -> None:
    """Three ways to go: by SIGTERM in a build, by SIGKILL, and by SIGTERM at rest."""
    operator, mark = box.operator, box.operator.mark()
    retained = operator.send("undeploy", model=MODEL, is_retained=True)
    assert operator.result(retained)["error"]["code"] == "retained_command"
    method = "nf4-dq" if operator.served()["method"] != "nf4-dq" else "nf4"

    under_way = box.switch(method)
    operator.reaches(under_way, "building")
    assert box.agent.terminate() == 0
    gone = operator.subscriber.on(operator.topic("presence"), since=mark)[-1]
    assert (gone["state"], gone["reason"]) == ("offline", "shutdown")
    assert operator.subscriber.on(operator.topic(f"op/{under_way}"))[-1]["state"] == "running"
    late = operator.send("status", expires_at=LONG_AGO)
    waiting = operator.send("set_method", model=MODEL, method="fp4-dq", gate=GATE)
    box.start()
    assert operator.result(under_way)["state"] == "succeeded"
    assert operator.result(waiting)["state"] == "succeeded"
    assert operator.result(late)["state"] == "expired"
    eventually(lambda: "operation_ended" in events(box, waiting, mark), "the end is on the audit trail")
    assert events(box, waiting, mark).count("operation_ended") == 1

    killed = operator.mark()
    box.agent.kill()
    box.start(until="presence")
    eventually(lambda: bool(box.answers()), "the model answers")
    presence = operator.subscriber.on(operator.topic("presence"), since=killed)
    assert {body["state"] for body in presence} == {"online"}, "a restart within the will's delay is no absence"
    epochs = [body["epoch"] for body in operator.subscriber.on(operator.topic("presence"), since=mark)]
    assert epochs == sorted(epochs)

    box.agent.terminate()
    box.start(until="presence")
    operator.clear("undeploy")
    assert events(box, retained, mark).count("command_accepted") == 0
    assert operator.served()["method"] == "fp4-dq"


@minutes
def test_a_device_that_is_gone_for_longer_than_its_will_waits_was_offline_in_between(box: Box) -> None:
    operator, mark = box.operator, box.operator.mark()
    before = operator.subscriber.on(operator.topic("presence"))[-1]["epoch"]
    box.agent.kill()
    operator.subscriber.wait(
        operator.topic("presence"), lambda body: body["state"] == "offline", since=mark, timeout_s=WILL_DELAY_S + 60
    )
    box.start(until="presence")
    presence = operator.subscriber.on(operator.topic("presence"), since=mark)
    assert [body["state"] for body in presence[:2]] == ["offline", "online"]
    assert presence[0]["epoch"] == before < presence[-1]["epoch"]
    eventually(lambda: bool(box.answers()), "the model answers")


@minutes
@pytest.mark.timeout(1800)
def test_fifty_switches_in_one_life_leave_nothing_behind(box: Box) -> None:
    """Memory and files of the supervisor and of the server, after a few switches and after fifty more."""

    def live(count: int) -> tuple[int, int, int, int]:
        for _ in range(count):
            method = "nf4-dq" if box.operator.served()["method"] == "nf4" else "nf4"
            assert box.operator.result(box.switch(method))["state"] == "succeeded"
        (server,) = box.agent.children("agent.serving")
        pids = (box.agent.pid, server.pid)
        server.close()
        return tuple(resident_bytes(pid) for pid in pids) + tuple(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)  # type: ignore[return-value]  # noqa: PTH208

    before, after = live(5), live(SWITCHES)
    # One may be a question of the supervisor's that is just being answered.
    assert all(now <= then + 2 for now, then in zip(after[2:], before[2:], strict=True)), (before, after)
    supervisor, server = (now - then for now, then in zip(after[:2], before[:2], strict=True))
    # An artifact of this model has 600 KB: fifty that were not let go would be 30 MB.
    assert supervisor < 4 << 20, supervisor
    assert server < 12 << 20, server
