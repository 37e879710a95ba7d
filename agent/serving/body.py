"""Bodies of HTTP requests and replies: reading within limits, compression both ways."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from typing import TYPE_CHECKING, Any

from agent.serving.errors import BadRequestError, BodyTimeoutError, TooLargeError, UnsupportedEncodingError
from agent.serving.limits import DEFAULT, Limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Receive = Callable[[], Awaitable[dict[str, Any]]]

DISCARD_S = 5.0
# Smaller replies do not gain from compression, and the fastest level loses little on tensors.
MIN_COMPRESSED_BYTES = 1024
COMPRESSION_LEVEL = 1
# zlib.h, inflateInit2: 15 is the window of the zlib format, 16 more mean gzip. "deflate" is the zlib format
# (RFC 9110, 8.4.1.2).
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
# (De)compressing more than this is not done on the event loop.
INLINE_BYTES = 64 * 1024
MOST_MEMBERS, PIECE_BYTES = 1024, 1 << 20
"""Of a gzip body: streams one behind the other, and what is unpacked at a time, since each copies what is behind it."""
MAX_DIGITS = 19
"""Of a length: with one more it can pass 2^63, and Python makes no integer of thousands."""


def length(name: str, value: bytes) -> int:
    """Return the number of bytes that a header tells; raises ``BadRequestError`` for anything else."""
    if value.isdigit() and len(value) <= MAX_DIGITS:
        return int(value)
    said, size = value[:32].decode("latin-1"), len(value)
    raise BadRequestError(f"{name} {said!r} ({size} characters) is not a number of at most {MAX_DIGITS} digits")


class DisconnectedError(Exception):
    """The client went away before its request was complete; nobody is left to answer."""


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limits: Limits = DEFAULT) -> bytes:
    """Return the decompressed body.

    Raises:
        TooLargeError: as announced, as received or as decompressed it is over ``limits.max_body_bytes``.
        BodyTimeoutError: it is not complete after ``limits.body_s``, or comes too slowly.
        DisconnectedError: the client left.
    """
    limit = limits.max_body_bytes
    announced = length("Content-Length", headers.get(b"content-length", b"0"))
    if announced > limit:
        raise TooLargeError(f"the body has {announced} bytes, at most {limit} are read", is_unread=True)
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if encoding not in ("identity", "") and encoding not in WINDOW_BITS:
        raise UnsupportedEncodingError(f"Content-Encoding {encoding!r} is not gzip, deflate or identity")
    body = await _receive_all(receive, limits)
    if encoding not in WINDOW_BITS:
        return body
    return await asyncio.to_thread(decompress, body, encoding, limit)


async def discard_body(receive: Receive) -> None:
    """Read and forget what a refused client still sends, for a while: it may look for the answer only afterwards.

    Closing a connection with unread bytes resets it, and the reset may overtake the reply.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + DISCARD_S
    with contextlib.suppress(BodyTimeoutError, DisconnectedError):
        while (await _receive_part(receive, ends_at - loop.time(), 0)).get("more_body"):
            pass


async def _receive_all(receive: Receive, limits: Limits) -> bytes:
    limit = limits.max_body_bytes
    message = await _receive_part(receive, limits.body_grace_s, 0)
    if not message.get("more_body"):
        return _checked(message.get("body", b""), 0, limit)
    loop = asyncio.get_running_loop()
    began = loop.time()
    parts, size = [_checked(message["body"], 0, limit)], len(message["body"])
    while message.get("more_body"):
        allowed_s = min(limits.body_s, limits.body_grace_s + size / limits.body_bytes_per_s)
        message = await _receive_part(receive, began + allowed_s - loop.time(), size)
        part = _checked(message.get("body", b""), size, limit)
        size += len(part)
        parts.append(part)
    return b"".join(parts)


def _checked(part: bytes, before: int, limit: int) -> bytes:
    if before + len(part) > limit:
        raise TooLargeError(f"the body has more than the {limit} bytes that are read", is_unread=True)
    return part


async def _receive_part(receive: Receive, timeout_s: float, before: int) -> dict[str, Any]:
    task = asyncio.current_task()
    # A timer costs a microsecond; asyncio.wait_for would start a task for every part of every request.
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        if task is not None:
            task.cancel()

    timer = asyncio.get_running_loop().call_later(max(timeout_s, 0.0), expire)
    try:
        message = await receive()
    except asyncio.CancelledError:
        if expired:
            raise BodyTimeoutError(f"the body comes too slowly: {before} bytes of it came in time") from None
        raise
    finally:
        timer.cancel()
    if message["type"] == "http.disconnect":
        raise DisconnectedError
    return message


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Return at most ``limit`` bytes of what ``body`` holds; a longer, a cut or a damaged one is an error.

    A gzip body may have several members (RFC 1952, 2.2), at most ``MOST_MEMBERS``.
    """
    view, at, size, parts = memoryview(body), 0, 0, []
    most = MOST_MEMBERS if WINDOW_BITS[encoding] == WINDOW_BITS["gzip"] else 1
    for member in range(most):
        stream = zlib.decompressobj(WINDOW_BITS[encoding])
        while not stream.eof:
            given = view[at : at + PIECE_BYTES]
            try:
                part = stream.decompress(given, limit - size + 1)
            except zlib.error as error:
                where = f" from byte {at} on" if member else ""
                raise BadRequestError(f"the body is not {encoding}{where}: {error}") from None
            at += len(given) - len(stream.unconsumed_tail) - len(stream.unused_data)
            size += len(part)
            if size > limit:
                raise TooLargeError(f"the decompressed body has more than the {limit} bytes that are read")
            if not given and not stream.eof:
                raise BadRequestError(f"the {encoding} body is cut short")
            parts.append(part)
        if at == len(view):
            return b"".join(parts) if len(parts) > 1 else parts[0]
    raise BadRequestError(f"the {encoding} body is followed by {len(view) - at} other bytes, {most} streams are read")


def accepted_encoding(headers: Mapping[bytes, bytes]) -> str | None:
    """Return ``gzip`` or ``deflate`` when the client asks for it, gzip if it takes both; ``q=0`` is a refusal."""
    offers = headers.get(b"accept-encoding", b"").decode("latin-1").lower().split(",")
    accepted = {name for name, quality in map(_offer, offers) if quality > 0}
    return next((encoding for encoding in ("gzip", "deflate") if encoding in accepted), None)


def _offer(text: str) -> tuple[str, float]:
    name, _, weight = text.partition(";")
    try:
        return name.strip(), float(weight.partition("=")[2]) if weight.strip() else 1.0
    except ValueError:
        return name.strip(), 0.0


async def compress(body: bytes, encoding: str) -> bytes:
    """Return ``body`` compressed, away from the event loop when it is large."""
    if len(body) > INLINE_BYTES:
        return await asyncio.to_thread(compressed, body, encoding)
    return compressed(body, encoding)


def compressed(body: bytes, encoding: str) -> bytes:
    """Return ``body`` compressed, here and now."""
    stream = zlib.compressobj(COMPRESSION_LEVEL, wbits=WINDOW_BITS[encoding])
    return stream.compress(body) + stream.flush()
