"""The Open Inference Protocol over HTTP, as a raw ASGI application.

Rules: routes are matched on the undecoded path, so that an encoded slash stays inside its segment; no header but
lengths and encodings is ever looked at (strict clients send no Content-Type); every reply that is not 200 is
``{"error": …}`` as ``application/json``; a client's mistake is never a 500. The socket of the supervisor gets the same
application with a ``ControlPlane``; without one the repository can be read and not changed. What is answered, and with
which statuses, is described in ``openapi``.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote

import structlog

from agent.serving.body import DisconnectedError, discard_body, read_body
from agent.serving.dataplane import model_config, model_metadata, model_statistics, server_metadata
from agent.serving.direct import MAX_PATH_BYTES, Direct, header_length
from agent.serving.disconnect import DisconnectWatch
from agent.serving.errors import (
    MethodNotAllowedError,
    NotFoundError,
    ServingError,
)
from agent.serving.exposition import CONTENT_TYPE
from agent.serving.generation.events import EventReply
from agent.serving.generation.routes import GENERATE, TextRoutes, openai_error_reply
from agent.serving.limits import DEFAULT, Limits
from agent.serving.metrics import render
from agent.serving.oip import format_response, parse_request
from agent.serving.openapi import document
from agent.serving.replies import Reply, error_reply, infer_reply, json_reply, send_reply
from agent.serving.repository import ReadOnlyRepository
from agent.serving.validation import timeout_s

if TYPE_CHECKING:
    from collections import Counter

    from agent.serving.access import Access
    from agent.serving.body import Receive
    from agent.serving.dataplane import DataPlane
    from agent.serving.oip import InferRequest
    from agent.serving.replies import Send
    from agent.serving.slots import Slot
    from agent.serving.tracing import Tracer

log = structlog.get_logger("http")


class Counted(Protocol):
    """What a line of the log says of a request."""

    @property
    def method(self) -> str:
        """Its verb."""

    @property
    def path(self) -> str:
        """Its path, as sent."""

    @property
    def began(self) -> float:
        """When it came."""


class Control(Protocol):
    """Answers the routes by which models are changed: a ``ControlPlane``, or what of it is offered."""

    async def answer(self, group: str, rest: list[str], method: str, body: bytes) -> Any:
        """Answer ``/v2/<group>/<rest>`` with a JSON value."""


class HttpApp:
    """Answers one listening socket.

    Args:
        plane: what is shared with the other sockets.
        responses: replies by status, counted for all sockets together.
        control: the routes of ``groups``; without one the repository can be read and not changed.
        limits: see there.
        access: None answers whoever can connect.
        groups: what ``control`` answers below ``/v2``.
        log_every: how many requests make a line of the log; 0 for none.
        tracer: hears of every inference, None where no traces are collected.
    """

    def __init__(
        self,
        plane: DataPlane,
        responses: Counter[int],
        control: Control | None = None,
        *,
        limits: Limits = DEFAULT,
        access: Access | None = None,
        groups: tuple[str, ...] = ("repository", "control"),
        log_every: int = 0,
        tracer: Tracer | None = None,
    ) -> None:
        self._plane = plane
        self._responses = responses
        self._control = control
        self._texts = TextRoutes(plane, self._body)
        self._groups = groups if control is not None else ()
        self._repository = ReadOnlyRepository(plane)
        self._limits = limits
        self._access = access
        self._log_every = log_every
        self._until_logged = log_every
        self._tracer = tracer
        self.direct = Direct(plane, limits, access, tracer, self._count)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise NotImplementedError(f"ASGI scope {scope['type']!r}")
        request = _Request.of(scope, receive)
        # A client whose body was not read to its end cannot use the connection for another request.
        is_unread = False
        try:
            reply = await self._answer(request)
        except DisconnectedError:
            return
        except ServingError as error:
            is_unread = error.is_unread
            reply = request.refusal(error)
        except Exception:
            log.exception("request_failed", path=request.path)
            reply = request.refusal(ServingError("internal error"))
        self._count(request, reply, scope.get("client"))
        closes = is_unread or self._plane.is_draining
        if isinstance(reply, EventReply):
            await reply.send(send, closes=closes)
            return
        await send_reply(send, reply, request.headers, closes=closes, ends=not is_unread)
        if is_unread:
            await discard_body(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _count(self, request: Counted, reply: Reply | EventReply, client: Any) -> None:
        self._responses[reply.status] += 1
        if not self._log_every:
            return
        self._until_logged -= 1
        if self._until_logged > 0:
            return
        self._until_logged = self._log_every
        client = (client or ("",))[0]
        took_ms = round((time.perf_counter() - request.began) * 1e3, 3)
        sent_bytes = None if isinstance(reply, EventReply) else len(reply.body)
        log.info(
            "request", method=request.method, path=request.path[:256], status=reply.status, took_ms=took_ms,
            sent_bytes=sent_bytes, client=client, one_of=self._log_every,
        )  # fmt: skip

    async def _answer(self, request: _Request) -> Reply | EventReply:
        if len(request.path) > MAX_PATH_BYTES:
            raise NotFoundError(f"the path has {len(request.path)} characters, at most {MAX_PATH_BYTES} are matched")
        if self._access is not None:
            self._access.check(request.route, request.headers)
        match request.route:
            case ["metrics"]:
                request.expect("GET")
                return Reply(200, render(self._plane, self._responses), CONTENT_TYPE)
            case ["v2", "models", name, *rest] if rest:
                return await self._model(request, name, rest)
            case ["openapi.json"]:
                request.expect("GET")
                return json_reply(self.description())
            case ["v2", "repository" | "control" as group, *rest]:
                body = await self._body(request) if request.method == "POST" else b""
                offered = self._control if self._control is not None and group in self._groups else self._repository
                return json_reply(await offered.answer(group, rest, request.method, body))
            case ["v2", *rest]:
                return self._describe(request, rest)
            case ["v1", *rest]:
                return await self._texts.openai(request, rest)
        raise request.unknown()

    def description(self) -> dict[str, Any]:
        """Return what this socket answers, as an OpenAPI document."""
        is_closed = self._access is not None and self._access.covers_inference
        return document(has_tokens=is_closed, has_repository="repository" in self._groups)

    def _describe(self, request: _Request, rest: list[str]) -> Reply:
        models = self._plane.models
        active = models.all_active()
        body: Any
        match rest:
            case [] | [""]:
                extensions = ("generate", "model_repository") if self._control is not None else ("generate",)
                body = server_metadata(extensions)
            case ["health", "live"]:
                body = {"live": True}
            case ["health", "ready"]:
                request.expect("GET")
                return self._health()
            case ["models"]:
                body = {"models": [slot.model for slot in active]}
            case ["models", "stats"]:
                body = {"model_stats": [model_statistics(slot) for slot in active]}
            case ["models", name]:
                body = model_metadata(models.active(name))
            case _:
                raise request.unknown()
        request.expect("GET")
        return json_reply(body)

    def _health(self) -> Reply:
        if self._plane.is_ready:
            return json_reply({"live": True, "ready": True})
        reason = "the server is shutting down" if self._plane.is_draining else "no model is active"
        return json_reply({"live": True, "ready": False, "error": reason}, 503)

    async def _model(self, request: _Request, name: str, rest: list[str]) -> Reply | EventReply:
        version = None
        if rest[0] == "versions" and len(rest) > 1:
            version, rest = rest[1], rest[2:]
        if rest == ["infer"]:
            request.expect("POST")
            return await self._infer(request, name, version)
        if len(rest) == 1 and rest[0] in GENERATE:
            return await self._texts.generate(request, name, version, rest[0])
        if rest not in ([], ["ready"], ["config"], ["stats"]):
            raise request.unknown()
        request.expect("GET")
        slot = self._plane.models.active(name, version)
        match rest:
            case ["ready"]:
                return json_reply({"name": name, "ready": True})
            case ["config"]:
                return json_reply(model_config(slot))
            case ["stats"]:
                return json_reply({"model_stats": [model_statistics(slot)]})
        return json_reply(model_metadata(slot))

    async def _infer(self, request: _Request, name: str, version: str | None) -> Reply:
        began = request.began
        self._plane.expect(name, version)
        body = await self._body(request)
        # Looked up again: another release may have been activated while the body came in.
        slot = self._plane.models.answering(name, version)
        watch = DisconnectWatch(request.receive)
        try:
            length, question, waited_s = header_length(request.headers), None, 0.0
            if slot is None:
                slot, question, waited_s = await self._wait(name, version, body, length)
            question = question or parse_request(body, length, slot.network.inputs)
            response = await self._plane.infer(slot, question, waited_s)
            reply = infer_reply(*format_response(response.wire))
        except ServingError as error:
            seconds = time.perf_counter() - began
            if slot is not None:
                slot.stats.refused(error.outcome, seconds)
            if self._tracer is not None:
                version = slot.version if slot is not None else ""
                self._tracer.record(request.headers.items(), name, version, seconds, error=str(error))
            raise
        except asyncio.CancelledError:
            if not watch.has_left:
                raise
            if slot is not None:
                slot.stats.refused("canceled", time.perf_counter() - began)
            raise DisconnectedError from None
        finally:
            watch.close()
        seconds = time.perf_counter() - began
        slot.stats.answered(response.rows, seconds, response.timing, time.time_ns() // 1_000_000)
        if self._tracer is not None:
            self._tracer.record(request.headers.items(), name, slot.version, seconds, timing=response.timing)
        return reply

    async def _wait(
        self, name: str, version: str | None, body: bytes, length: int | None
    ) -> tuple[Slot, InferRequest | None, float]:
        """Wait for the end of a switch; return the slot that answers, the request if it was read, and the seconds."""
        began = time.perf_counter()
        # All but a raw request is read before the wait: mistakes are told at once, and the client's timeout is in it.
        question = None if length == 0 else parse_request(body, length)
        limit_s = None if question is None else timeout_s(question)
        slot = await self._plane.await_slot(name, version, len(body), limit_s)
        return slot, question, time.perf_counter() - began

    async def _body(self, request: _Request) -> bytes:
        return await read_body(request.headers, request.receive, self._limits)


@dataclass(frozen=True)
class _Request:
    """What arrived: ``route`` holds the decoded segments of ``path``, which is kept as sent."""

    method: str
    path: str
    route: list[str]
    headers: dict[bytes, bytes]
    receive: Receive
    began: float

    @classmethod
    def of(cls, scope: Any, receive: Receive) -> _Request:
        """Read an ASGI scope."""
        path = (scope.get("raw_path") or quote(scope["path"]).encode()).partition(b"?")[0].decode("latin-1")
        return cls(
            scope["method"],
            path,
            [unquote(part) for part in path.split("/")[1:]],
            dict(scope["headers"]),
            receive,
            time.perf_counter(),
        )

    def expect(self, method: str) -> None:
        """Raise ``MethodNotAllowedError`` for another verb; HEAD is GET without the body, which uvicorn leaves out."""
        if self.method != method and not (self.method == "HEAD" and method == "GET"):
            raise MethodNotAllowedError(self.method, self.path[:128], method)

    def refusal(self, error: ServingError) -> Reply:
        """Return what says no, in the form of the protocol that was spoken."""
        return openai_error_reply(error) if self.route[:1] == ["v1"] else error_reply(error)

    def unknown(self) -> NotFoundError:
        """Return the error for a path that matches nothing."""
        return NotFoundError(f"there is no route {self.path[:128]}")
