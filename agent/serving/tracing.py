"""Spans of inference requests for OpenTelemetry, for those who collect traces: the extra ``otel``.

A span is made when its request has ended, from the times that the metrics are made of, so nothing is done for it while
the model computes. It belongs to the trace that the client's ``traceparent`` names. Spans leave in batches, from a
thread of the SDK; a collector that is away costs spans, never requests.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.serving.stats import Timing

SERVICE = "nibbled"
HEADERS = (b"traceparent", b"tracestate")


class TracingError(RuntimeError):
    """Traces are wanted, and the packages for them are missing."""


class Tracer:
    """Hands spans to an OTLP collector over HTTP.

    Args:
        endpoint: URL of the collector's trace receiver, such as ``http://127.0.0.1:4318/v1/traces``.

    Raises:
        TracingError: the extra ``otel`` is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry import propagate, trace  # noqa: PLC0415 - an extra, and not a small one
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as error:
            raise TracingError(f"serving.otlp_endpoint is set: pip install 'nibbled[otel]' ({error})") from error
        self._extract = propagate.extract
        self._trace = trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer(SERVICE)

    def record(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        model: str,
        version: str,
        seconds: float,
        *,
        timing: Timing | None = None,
        error: str | None = None,
    ) -> None:
        """Tell of a request that has just ended.

        Args:
            headers: of the request; two of them name the trace it belongs to.
            model: its name.
            version: of the release that answered, empty if none did.
            seconds: from the request's arrival until now.
            timing: where the time went, None for a request that was not computed.
            error: what the client was told instead of an answer.
        """
        ended = time.time_ns()
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in HEADERS}
        began = ended - round(seconds * 1e9)
        attributes: dict[str, Any] = {"nibbled.model": model, "nibbled.version": version}
        span = self._tracer.start_span(
            "infer",
            context=self._extract(carrier) if carrier else None,
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=began,
        )
        if error is not None:
            span.set_status(self._trace.StatusCode.ERROR, error)
        if timing is not None:
            self._parts(span, began, timing)
        span.end(ended)

    def _parts(self, span: Any, began: int, timing: Timing) -> None:
        within = self._trace.set_span_in_context(span)
        for name, seconds in (("queue", timing.queue_s), ("compute", timing.compute_s)):
            ended = began + round(seconds * 1e9)
            self._tracer.start_span(name, context=within, start_time=began).end(ended)
            began = ended

    def close(self, timeout_s: float) -> None:
        """Send what is left and end; after ``timeout_s`` a collector that does not answer is left alone."""
        # The SDK waits for as long as its exporter retries, whatever time it is given.
        ending = threading.Thread(target=self._provider.shutdown, name="tracer", daemon=True)
        ending.start()
        ending.join(timeout_s)
