"""Answers that come in pieces, as server-sent events (HTML standard, 9.2), each piece one ``data`` line of JSON.

A stream begins once its first piece is there: until then an error has a status of its own, and after it an event.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from agent.serving.errors import ServingError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agent.serving.disconnect import DisconnectWatch
    from agent.serving.generation.engine import Stream
    from agent.serving.generation.service import Answer
    from agent.serving.generation.stepper import Piece
    from agent.serving.replies import Send

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects pieces would make them useless
)


class Form(Protocol):
    """One protocol's objects for one request, as JSON."""

    def whole(self, text: str, reason: str, tokens: int) -> bytes:
        """Return the answer of a request that does not stream."""

    def first(self) -> list[bytes]:
        """Return what a stream begins with."""

    def piece(self, text: str, reason: str | None) -> list[bytes]:
        """Return what is sent for one piece."""

    def last(self, tokens: int) -> list[bytes]:
        """Return what a stream ends with."""

    def failure(self, error: ServingError) -> bytes:
        """Return what a stream says of its failure."""


class EventReply:
    """A reply whose body is still being made.

    Args:
        answer: where it comes from.
        first: its first piece.
        form: how it is told.
        watch: cancels this task when the client leaves; closed here.
        count: takes the outcome of the request, once.
    """

    status = 200

    def __init__(
        self, answer: Answer, first: Piece, form: Form, watch: DisconnectWatch, count: Callable[[str], None]
    ) -> None:
        self._answer = answer
        self._first = first
        self._form = form
        self._watch = watch
        self._count = count

    async def send(self, send: Send, *, closes: bool) -> None:
        """Send everything; a client that leaves ends it."""
        headers = [*HEADERS, *([(b"connection", b"close")] if closes else [])]
        outcome = "canceled"
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            try:
                async for event in self._events(self._answer.stream):
                    await _send_event(send, event)
                outcome = "ok"
            except ServingError as error:
                outcome = error.outcome
                await _send_event(send, self._form.failure(error))
        except asyncio.CancelledError:
            if not self._watch.has_left:
                await _send_event(send, self._form.failure(UnavailableError("the server is shutting down")))
                raise
        finally:
            self._watch.close()
            self._answer.engine.drop(self._answer.stream)
            self._count(outcome)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, stream: Stream) -> AsyncIterator[bytes]:
        piece = self._first
        for event in self._form.first():
            yield event
        while True:
            for event in self._form.piece(piece.text, piece.reason):
                yield event
            if piece.reason is not None:
                break
            piece = await stream.next()
        for event in self._form.last(stream.tokens):
            yield event


async def _send_event(send: Send, event: bytes) -> None:
    await send({"type": "http.response.body", "body": b"data: " + event + b"\n\n", "more_body": True})
