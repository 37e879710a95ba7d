"""Clients for benches that time the server from outside: bare connections that stay, and as little else as can be."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """A reply and what it took, in seconds."""

    status: int
    body: bytes
    seconds: float


def request(path: str, body: bytes | None = None, headers: str = "") -> bytes:
    """Return the bytes of a request: GET, or POST where there is a body; ``headers`` are lines with their ends."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Asker:
    """A connection that is asked one thing after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> Asker:
        """Return a connection to this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, payload: bytes) -> Reply:
        """Send a request and read its reply."""
        began = time.perf_counter()
        self._writer.write(payload)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await self._reader.readexactly(int(length[1])) if length else b""
        return Reply(int(head.split(None, 2)[1]), body, time.perf_counter() - began)

    def close(self) -> None:
        """End it."""
        self._writer.close()


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a nearest-rank percentile, not a number for none."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * int(percent * 10) // 1000) - 1] if ordered else float("nan")


def milliseconds(values: Sequence[float]) -> list[str]:
    """Return the median, the 99th percentile and the largest of some seconds, for a table in milliseconds."""
    if not values:
        return ["-", "-", "-"]
    return [f"{1e3 * each:.1f}" for each in (percentile(values, 50), percentile(values, 99), max(values))]
