"""Inference without ASGI: the requests that a server is there for, from the parser to the queue and back.

A task, its messages and their dictionaries cost more than reading an ordinary request and writing its answer. So a
request that is nothing out of the ordinary is read where its last byte arrives, and answered where its batch is
delivered. What is out of the ordinary goes the application's way, from its headers on or, when its body is slow, from
what came of it.

INVARIANTS:
- Both ways answer the same bytes, and count the same; a test holds them side by side.
- Nothing is written while the connection's parser is at work: answers keep their order, whatever was sent ahead.
- A client that left costs no computation that has not begun.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import unquote

import httptools
import structlog

from agent.serving.body import INLINE_BYTES, MAX_DIGITS, MIN_COMPRESSED_BYTES, accepted_encoding, compressed, length
from agent.serving.errors import ServingError
from agent.serving.oip import format_response, parse_request
from agent.serving.replies import error_reply, header_lines, infer_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.serving.access import Access
    from agent.serving.dataplane import DataPlane, Inference
    from agent.serving.limits import Limits
    from agent.serving.replies import Header, Reply
    from agent.serving.slots import Slot
    from agent.serving.tracing import Tracer

    Count = Callable[["DirectInference", Reply, Any], None]

log = structlog.get_logger("http")
HEADER_LENGTH = b"inference-header-content-length"
MAX_PATH_BYTES = 4096
MOST_BYTES = 1 << 20
"""Of a body that is read here: beside a larger one a task is nothing, and its client is told when to go on."""
PATIENCE_S = 0.05
"""How long a body is waited for here; what comes more slowly has the application's deadlines."""
ROUTES_KEPT = 64
_ODD = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"))


def header_length(headers: dict[bytes, bytes]) -> int | None:
    """Return how long the JSON part of a request is announced to be; raises ``BadRequestError`` for no number."""
    value = headers.get(HEADER_LENGTH)
    return None if value is None else length("Inference-Header-Content-Length", value)


@lru_cache(maxsize=ROUTES_KEPT)
def inference_route(url: bytes) -> tuple[str, str | None, tuple[str, ...]] | None:
    """Return model, version and the decoded segments of a request's target, None if it does not ask for inference."""
    try:
        path = (httptools.parse_url(url).path or b"").decode("ascii")
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
        return None
    route = tuple(unquote(part) for part in path.split("/")[1:])
    match route:
        case ("v2", "models", name, "infer"):
            return name, None, route
        case ("v2", "models", name, "versions", version, "infer"):
            return name, version, route
    return None


class Line(Protocol):
    """The connection that an inference came over.

    Attributes:
        client: its address, None where it has none.
    """

    client: tuple[str, int] | None

    def finish(self, inference: DirectInference, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Write a whole answer, in one piece, unless the client is gone."""


class Direct:
    """Answers inference for connections.

    Args:
        plane, limits, access, tracer: those of the application.
        count: hears of every reply, and from which address it was asked for.
    """

    def __init__(
        self, plane: DataPlane, limits: Limits, access: Access | None, tracer: Tracer | None, count: Count
    ) -> None:
        self._plane = plane
        self._most_bytes = min(MOST_BYTES, limits.max_body_bytes)
        self._access = access
        self._tracer = tracer
        self._count = count

    def begin(self, line: Line, url: bytes, headers: Sequence[tuple[bytes, bytes]], *, keep_alive: bool) -> Any:
        """Return an inference whose body is to come, None for a request that the application has to look at."""
        found = inference_route(url) if len(url) <= MAX_PATH_BYTES else None
        by_name = dict(headers)
        told = by_name.get(b"content-length", b"")
        if found is None or not _ODD.isdisjoint(by_name) or not told.isdigit() or len(told) > MAX_DIGITS:
            return None
        if int(told) > self._most_bytes:
            return None
        name, version, route = found
        try:
            if self._access is not None:
                self._access.check(list(route), by_name)
            if self._plane.models.answering(name, version) is None:
                return None
        except ServingError:
            return None
        return DirectInference(self, line, name, version, url, by_name, keep_alive)

    def ask(self, inference: DirectInference) -> bool:
        """Queue what was read; return False, and do nothing, where the application has to wait for a model."""
        try:
            # Looked up again: another release may have been activated while the body came in.
            slot = self._plane.models.answering(inference.name, inference.version)
        except ServingError:
            slot = None
        if slot is None:
            return False
        inference.slot = slot
        # Not kept: the connection knows its last request until the next one, and that may take a minute.
        parts, inference.parts = inference.parts, []
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        del parts
        try:
            request = parse_request(body, header_length(inference.headers), slot.network.inputs)
            inference.take_back = self._plane.ask(slot, request, lambda outcome: self._answer(inference, outcome))
        except Exception as error:  # noqa: BLE001 - answered as the application answers it
            asyncio.get_running_loop().call_soon(self._answer, inference, error)
        return True

    def _answer(self, inference: DirectInference, outcome: Inference | Exception) -> None:
        """Count an outcome and send what there is to say of it; on the event loop, behind whatever is being parsed."""
        slot = inference.slot
        assert slot is not None  # noqa: S101 - it was asked
        inference.take_back = None
        seconds = time.perf_counter() - inference.began
        if inference.disconnected:
            slot.stats.refused("canceled", seconds)
            return
        try:
            reply = infer_reply(*format_response(_answered(outcome).wire))
        except ServingError as error:
            slot.stats.refused(error.outcome, seconds)
            self._trace(inference, slot, seconds, error=str(error))
            reply = error_reply(error)
        except Exception:
            log.exception("request_failed", path=inference.path)
            reply = error_reply(ServingError("internal error"))
        else:
            assert not isinstance(outcome, Exception)  # noqa: S101 - it would have been raised
            slot.stats.answered(outcome.rows, seconds, outcome.timing, time.time_ns() // 1_000_000)
            self._trace(inference, slot, seconds, timing=outcome.timing)
        self._send(inference, reply)

    def _trace(self, inference: DirectInference, slot: Slot, seconds: float, **what: Any) -> None:
        if self._tracer is not None:
            self._tracer.record(inference.headers.items(), inference.name, slot.version, seconds, **what)

    def _send(self, inference: DirectInference, reply: Reply) -> None:
        self._count(inference, reply, inference.line.client)
        if self._plane.is_draining:
            inference.keep_alive = False
        body = reply.body
        encoding = accepted_encoding(inference.headers) if len(body) >= MIN_COMPRESSED_BYTES else None
        if encoding is None:
            _finish(inference, reply, body, None)
        elif len(body) <= INLINE_BYTES:
            _finish(inference, reply, *_packed(body, encoding))
        else:
            packing = asyncio.get_running_loop().run_in_executor(None, _packed, body, encoding)
            packing.add_done_callback(lambda done: _finish(inference, reply, *done.result()))


def _packed(body: bytes, encoding: str) -> tuple[bytes, str | None]:
    """Return a body as it is sent, and its encoding: without the memory to pack it, as it is."""
    try:
        return compressed(body, encoding), encoding
    except MemoryError:
        return body, None


def _answered(outcome: Inference | Exception) -> Inference:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _finish(inference: DirectInference, reply: Reply, body: bytes, encoding: str | None) -> None:
    headers = header_lines(reply, len(body), encoding)
    if not inference.keep_alive:
        headers.append((b"connection", b"close"))
    inference.line.finish(inference, reply.status, headers, body)


class _Nobody:
    """What an inference has in place of the event that a task would wait for."""

    def set(self) -> None:
        """Nobody waits."""


@dataclass(eq=False)
class DirectInference:
    """One request; what uvicorn's connections ask of a cycle of theirs, and no more.

    Attributes:
        name, version: of the model that is asked, the latter None if any will do.
        url: the request's target.
        parts: of the body, as they came.
        slot: what answers, None until the body is whole.
        take_back: takes the question out of the queue, None while it is not in there.
        method, path: for a line of the log.
    """

    direct: Direct
    line: Line
    name: str
    version: str | None
    url: bytes
    headers: dict[bytes, bytes]
    keep_alive: bool
    began: float = field(default_factory=time.perf_counter)
    parts: list[bytes] = field(default_factory=list)
    slot: Slot | None = None
    take_back: Callable[[], None] | None = None
    more_body: bool = True
    response_started: bool = False
    response_complete: bool = False
    disconnected: bool = False
    message_event: ClassVar[_Nobody] = _Nobody()
    method: ClassVar[str] = "POST"

    @property
    def path(self) -> str:
        """What was asked, without the query."""
        return self.url.partition(b"?")[0].decode("latin-1")

    def ask(self) -> bool:
        """Ask, now that the body is whole; return False where the application has to."""
        self.more_body = False
        return self.direct.ask(self)

    def leave(self) -> None:
        """Take back what was asked: the client is gone."""
        self.disconnected = True
        if self.take_back is not None:
            self.take_back()
