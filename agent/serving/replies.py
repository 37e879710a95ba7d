"""Replies as values, and how each becomes an ASGI message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from agent.serving.body import MIN_COMPRESSED_BYTES, accepted_encoding, compress
from agent.serving.errors import (
    RETRY_AFTER_S,
    LoadFailedError,
    MethodNotAllowedError,
    ServingError,
    UnauthorizedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Send = Callable[[dict[str, Any]], Awaitable[None]]

Header = tuple[bytes, bytes]
# Without a charset: one of the strict clients compares the whole value.
JSON = b"application/json"


@dataclass(frozen=True)
class Reply:
    """A complete answer."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[Header, ...] = ()


def json_reply(body: Any, status: int = 200) -> Reply:
    """Return ``body`` as JSON."""
    return Reply(status, orjson.dumps(body), headers=_retry_after(status))


def error_reply(error: ServingError) -> Reply:
    """Return the error object of the protocol, with what its status demands."""
    body: dict[str, Any] = {"error": str(error)}
    headers: tuple[Header, ...] = _retry_after(error.status)
    if isinstance(error, LoadFailedError):
        body["code"] = error.code
    if isinstance(error, MethodNotAllowedError):
        headers = ((b"allow", error.allow.encode()),)
    if isinstance(error, UnauthorizedError):
        headers = ((b"www-authenticate", b'Bearer error="invalid_token"' if error.is_wrong else b"Bearer"),)
    return Reply(error.status, orjson.dumps(body), headers=headers)


def infer_reply(header_length: int | None, body: bytes) -> Reply:
    """Return an inference reply; the header that ends its JSON part goes with a binary part only."""
    if header_length is None:
        return Reply(200, body)
    length = (b"inference-header-content-length", str(header_length).encode())
    return Reply(200, body, b"application/octet-stream", (length,))


async def send_reply(
    send: Send, reply: Reply, request_headers: Mapping[bytes, bytes], *, closes: bool = False, ends: bool = True
) -> None:
    """Send ``reply``.

    Args:
        send: of ASGI.
        reply: what to say.
        request_headers: ask for compression, or do not.
        closes: whether the client is told that the connection ends after this reply.
        ends: False leaves the response open, so that the connection does not end yet.
    """
    body = reply.body
    encoding = accepted_encoding(request_headers) if len(body) >= MIN_COMPRESSED_BYTES else None
    if encoding is not None:
        body = await compress(body, encoding)
    headers = header_lines(reply, len(body), encoding)
    if closes:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not ends})


def header_lines(reply: Reply, length: int, encoding: str | None) -> list[Header]:
    """Return what a reply's head says of its body, which has ``length`` bytes as it is sent."""
    headers = [(b"content-type", reply.content_type), *reply.headers]
    if encoding is not None:
        headers += [(b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding")]
    headers.append((b"content-length", b"%d" % length))
    return headers


def _retry_after(status: int) -> tuple[Header, ...]:
    return ((b"retry-after", str(RETRY_AFTER_S).encode()),) if status in (429, UnavailableError.status) else ()
