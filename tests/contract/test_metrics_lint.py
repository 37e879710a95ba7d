"""What Prometheus's own tool says of the metrics: of the server's, after traffic, and of the agent's."""

from __future__ import annotations

import subprocess
import urllib.request

import pytest

from agent.health.web import StatusSite
from tests.e2e.harness.tools import require
from tests.fakes.serving import POISON, FakeNetwork, harness, json_request, run

HEALTH = {
    "status": "ok",
    "device": {"memory": {"available_bytes": 10, "total_bytes": 20}},
    "models": {"kanji": {"requests": 3, "failures": 1}},
    "supervisor_rss_bytes": 60,
    "server_rss_bytes": 70,
    "disk": {"free_bytes": 7},
    "operations": [{}, {}],
}


def lint(metrics: bytes | bytearray) -> str:
    """Return what ``promtool check metrics`` has to say; nothing is good."""
    done = subprocess.run(
        [require("promtool"), "check", "metrics"],
        input=metrics,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.stdout.decode()


def test_the_servers_metrics_are_clean_once_every_kind_of_them_has_a_value() -> None:
    metrics = bytearray()

    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork())
            await it.data.post("/v2/models/m/infer", json=json_request([[1.0, 2.0, 3.0, 4.0]]))
            await it.data.post("/v2/models/m/infer", json=json_request([[POISON] * 4]))
            await it.data.get("/v2/models/nobody")
            metrics.extend((await it.data.get("/metrics")).content)

    run(scenario)
    assert lint(metrics) == ""
    assert b"nobody" not in metrics, "what a client sends is no label"
    for name in (b"queue_duration_seconds_bucket", b"compute_infer_seconds_total{", b"batch_rows_bucket"):
        assert b"nibbled_inference_" + name in metrics


def test_the_agents_metrics_are_clean() -> None:
    site = StatusSite("127.0.0.1", 0, lambda: {"device_id": "box", "health": HEALTH, "models": {}, "operations": []})
    site.start()
    try:
        with urllib.request.urlopen(f"{site.url}metrics", timeout=5) as response:  # noqa: S310 - loopback
            assert lint(response.read()) == ""
    finally:
        site.stop()


@pytest.mark.parametrize("broken", [b"no value here\n", b"# TYPE a counter\na 1\n"])
def test_the_tool_does_complain_of_bad_ones(broken: bytes) -> None:
    assert lint(broken) != ""
