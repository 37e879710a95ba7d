"""Spans of inference requests for OpenTelemetry, for those who collect traces: the extra ``otel``.

A span is made when its request has ended, from the times that the metrics are made of, so nothing is done for it while
the model computes. It belongs to the trace that the client's ``traceparent`` names. Spans leave in batches, from a
thread of the SDK; a collector that is away costs spans, never requests. The SDK's own words about that come a line a
minute at most, by a name of ours.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from agent.contract.secrets import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.serving.stats import Timing

log = structlog.get_logger("tracing")
SERVICE = "nibbled"
HEADERS = (b"traceparent", b"tracestate")
SDK = "opentelemetry"
"""The logger above all of the SDK's."""
COMPLAINT_EVERY_S = 60.0
MOST_CHARACTERS = 500


class TracingError(RuntimeError):
    """Traces are wanted, and the packages for them are missing."""


class Complaints(logging.Handler):
    """What the SDK complains of, as lines of our log: the first one, and then one in ``COMPLAINT_EVERY_S``.

    Args:
        endpoint: of the collector; what is secret of it is not written.
        clock: in seconds.
    """

    def __init__(self, endpoint: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        address = urlsplit(endpoint)
        # Libraries name the target without the host, so that it is no address any more.
        self._secrets = [part for part in (address.password, address.query) if part]
        self._clock = clock
        self._silent_until = float("-inf")
        self._unsaid = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write, or count, what was said; the handler's lock is held."""
        now = self._clock()
        if now < self._silent_until:
            self._unsaid += 1
            return
        self._silent_until = now + COMPLAINT_EVERY_S
        error = record.exc_info[1] if record.exc_info else None
        text = redacted(record.getMessage() if error is None else f"{record.getMessage()} {error}")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        log.warning("traces_not_sent", detail=text[:MOST_CHARACTERS], unsaid=self._unsaid)
        self._unsaid = 0

    def take_over(self) -> None:
        """Become the only one that hears the SDK."""
        logger = logging.getLogger(SDK)
        logger.handlers = [self]
        logger.propagate = False


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
        Complaints(endpoint).take_over()
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
