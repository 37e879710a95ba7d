"""What an operator asks a running device to find out, with the real builder: comparison, self-test, log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.operator import MODEL

if TYPE_CHECKING:
    from tests.e2e.harness.world import Device

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_methods_are_compared_on_the_device_and_what_serves_stays(serving_device: Device) -> None:
    operator = serving_device.operator
    before = operator.served()
    report = operator.result(operator.send("compare", model=MODEL, methods=["nf4", "int8"]))
    assert report["state"] == "succeeded", report["error"]
    rows = {row["method"]: row for row in report["decision"]["compare"]}
    assert set(rows) == {"nf4", "int8"}
    assert rows["nf4"]["artifact_bytes"] < rows["int8"]["artifact_bytes"]
    assert all(row["passes"] and row["latency_p50_ms"] > 0 for row in rows.values())
    assert operator.served()["since"] == before["since"]


def test_a_self_test_runs_every_kernel_and_capabilities_come_again(serving_device: Device) -> None:
    operator = serving_device.operator
    mark = operator.mark()
    report = operator.result(operator.send("self_test"))
    assert report["state"] == "succeeded", report["error"]
    assert report["decision"]["self_test"]["nf4"]["ok"] is True
    found = report["decision"]["self_test"]
    operator.subscriber.wait(operator.topic("capabilities"), lambda body: body["methods"] == found, since=mark)


def test_the_log_comes_in_chunks_until_the_last_one(serving_device: Device) -> None:
    operator = serving_device.operator
    operation = operator.send("collect_logs", max_bytes=20_000)
    topic = operator.topic(f"log/{operation}")
    operator.subscriber.wait(topic, lambda body: body["last"])
    entries = [entry for chunk in operator.subscriber.on(topic) for entry in chunk["entries"]]
    assert len(entries) > 5
    assert {entry["device"] for entry in entries} == {"serving"}
    assert [entry["timestamp"] for entry in entries] == sorted(entry["timestamp"] for entry in entries)
