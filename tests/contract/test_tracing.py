"""Spans as a real collector's receiver gets them."""

from __future__ import annotations

import asyncio
import builtins
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from structlog.testing import capture_logs

from agent.serving.http import HttpApp
from agent.serving.stats import Timing
from agent.serving.tracing import Complaints, Tracer, TracingError
from tests.fakes.collector import Collector
from tests.fakes.serving import FakeNetwork, Harness, harness, json_request, run

if TYPE_CHECKING:
    from collections.abc import Iterator

INFER = "/v2/models/m/infer"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = [(b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode()), (b"authorization", b"Bearer canary")]
TIMING = Timing(queue_s=0.25, input_s=0.0, infer_s=0.5, output_s=0.0)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def test_a_request_is_a_span_of_the_clients_trace_with_queue_and_compute_inside(collector: Collector) -> None:
    tracer = Tracer(collector.url)
    tracer.record(PARENT, "kanji", "7", 1.0, timing=TIMING)
    tracer.close(10)
    infer, queue, compute = (collector.spans[name] for name in ("infer", "queue", "compute"))
    assert infer.trace_id.hex() == queue.trace_id.hex() == TRACE
    assert infer.parent_span_id.hex() == "b7ad6b7169203331"
    assert queue.parent_span_id == compute.parent_span_id == infer.span_id
    assert infer.end_time_unix_nano - infer.start_time_unix_nano == 1_000_000_000
    assert queue.end_time_unix_nano == compute.start_time_unix_nano == infer.start_time_unix_nano + 250_000_000
    assert {each.key: each.value.string_value for each in infer.attributes} == {
        "nibbled.model": "kanji",
        "nibbled.version": "7",
    }
    assert b"canary" not in collector.raw, "no other header leaves the device"


def client_of(it: Harness, tracer: Tracer) -> httpx.AsyncClient:
    """Return a client of what is served, traced."""
    app: Any = HttpApp(it.plane, it.responses, tracer=tracer)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://box")


def test_requests_over_http_are_traced_with_their_release_and_with_what_they_were_refused_for(
    collector: Collector,
) -> None:
    tracer = Tracer(collector.url)

    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", FakeNetwork(), version="7")
            client = client_of(it, tracer)
            traced = {"traceparent": PARENT[0][1].decode()}
            good = await client.post(INFER, json=json_request([[1.0, 2.0, 3.0, 4.0]]), headers=traced)
            assert good.status_code == 200
            assert collector.spans == {}, "spans leave in batches"
            await asyncio.to_thread(tracer.close, 10.0)
            assert (collector.spans["infer"].trace_id.hex(), "compute" in collector.spans) == (TRACE, True)
            assert {each.key: each.value.string_value for each in collector.spans["infer"].attributes} == {
                "nibbled.model": "m",
                "nibbled.version": "7",
            }
            another = Tracer(collector.url)
            bad = await client_of(it, another).post(INFER, json={"inputs": 5})
            assert bad.status_code == 400
            await asyncio.to_thread(another.close, 10.0)

    run(scenario)
    assert "inputs" in collector.spans["infer"].status.message


def test_a_refusal_is_a_span_that_says_what_the_client_was_told(collector: Collector) -> None:
    tracer = Tracer(collector.url)
    tracer.record([], "kanji", "", 0.001, error="the queue is full")
    tracer.close(10)
    assert collector.spans["infer"].status.message == "the queue is full"
    assert "queue" not in collector.spans


def test_a_collector_that_does_not_answer_does_not_keep_the_process(collector: Collector) -> None:
    collector.holds.clear()
    tracer = Tracer(collector.url)
    tracer.record([], "kanji", "", 0.001)
    tracer.close(0.1)
    assert collector.asked.wait(10)
    assert not collector.spans, "it was not waited for"
    collector.holds.set()


def test_a_collector_that_refuses_is_a_line_of_the_log_by_a_stable_name(collector: Collector) -> None:
    collector.status = 400
    secret = collector.url.replace("127", "somebody:canary@127") + "?key=canary"
    with capture_logs() as lines:
        tracer = Tracer(secret)
        tracer.record(PARENT, "kanji", "7", 0.1)
        tracer.close(10)
    assert [(line["event"], line["log_level"], line["unsaid"]) for line in lines] == [("traces_not_sent", "warning", 0)]
    assert "400" in lines[0]["detail"]
    assert "canary" not in str(lines)


def test_what_the_sdk_says_again_and_again_is_counted_and_told_once_a_minute() -> None:
    times = iter((0.0, 1.0, 59.9, 60.0, 119.9, 121.0))
    Complaints("http://x/?key=canary", lambda: next(times)).take_over()
    sdk = logging.getLogger("opentelemetry.exporter.made_up")
    with capture_logs() as lines:
        for _ in range(5):
            sdk.error("Failed to send %s to /?key=canary", "x" * 10_000)
        sdk.info("not worth a line")
        sdk.error("Exception while exporting Span batch.", exc_info=ValueError("no room"))
    assert [line["unsaid"] for line in lines] == [0, 2, 1]
    assert lines[-1]["detail"] == "Exception while exporting Span batch. no room"
    assert max(len(line["detail"]) for line in lines) == 500
    assert "canary" not in str(lines)


def test_a_trace_header_that_makes_no_sense_begins_a_trace_of_its_own(collector: Collector) -> None:
    tracer = Tracer(collector.url)
    tracer.record([(b"traceparent", b"\xff\xfe;;")], "kanji", "7", 0.1)
    tracer.close(10)
    assert not collector.spans["infer"].parent_span_id


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TracingError, match=r"nibbled\[otel\]"):
        Tracer("http://127.0.0.1:1/v1/traces")
