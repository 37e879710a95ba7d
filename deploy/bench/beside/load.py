"""The load: connections that are kept alive, each sending one request of one row again as soon as it was answered.

    python -m deploy.bench.beside.load FORM PORT CONNECTIONS SECONDS [PATH]

Prints a JSON object: requests a second, percentiles in milliseconds, statuses. It shares the cores with the server that
it loads, so it does as little as it can: no HTTP library, one buffer, the reply's length and status alone.

What is sent is what such a model is there for: a picture, one of the demo's held-out drawings, another for each
connection. Random numbers (``noise``) are a form of their own: which branches
a kernel takes depends on what it is given.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop
from safetensors.numpy import load_file

WARM_UP_S = 0.5
DRAWINGS = Path(__file__).parents[2] / "demo" / "kanji" / "evaluation.safetensors"
FORMS = ("binary", "json", "lit", "noise")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def pictures(count: int) -> np.ndarray[Any, Any]:
    """Return drawings as small pictures in three alike colours, ``(count, 3, 32, 32) float32`` in [0, 1]."""
    grey = load_file(DRAWINGS)["inputs"][:count].astype(np.float32)
    small = grey.reshape(count, 1, 32, 2, 32, 2).mean((3, 5))
    return np.ascontiguousarray(np.broadcast_to(small, (count, 3, 32, 32)))


def noise(count: int) -> np.ndarray[Any, Any]:
    """Return random numbers instead."""
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32), dtype=np.float32)


def request(form: str, port: int, path: str, number: int = 0) -> bytes:
    """Return the bytes of one request of ``FORMS`` (``lit`` is LitServe's own), with the picture of that number."""
    row = (noise if form == "noise" else pictures)(number + 1)[number:]
    extra = ""
    tensor: dict[str, Any] = {"name": "input", "shape": list(row.shape), "datatype": "FP32"}
    if form in ("binary", "noise"):
        raw = row.tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        extra = f"Inference-Header-Content-Length: {len(head)}\r\n"
        body = head + raw
    elif form == "json":
        body = json.dumps({"inputs": [{**tensor, "data": row.ravel().tolist()}]}).encode()
    else:
        body = json.dumps({"data": row.ravel().tolist()}).encode()
    kind = "application/octet-stream" if extra else "application/json"
    head_lines = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\n{extra}"
    return f"{head_lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Tally:
    """What was answered, and when the load ends."""

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, payload: bytes, tally: Tally) -> None:
        self._payload, self._tally = payload, tally
        self._buffer = b""
        self._sent_at = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._payload)

    def data_received(self, data: bytes) -> None:
        """Send the next request once the reply is whole."""
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head + 2)
        if length is None:
            if not self._buffer.endswith(b"0\r\n\r\n"):  # a reply in chunks
                return
        elif len(self._buffer) < head + 4 + int(length[1]):
            return
        now = time.perf_counter()
        self._tally.latencies.append(now - self._sent_at)
        self._tally.statuses[self._buffer[9:12].decode()] += 1
        self._buffer = b""
        if now < self._tally.ends_at:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; a connection that the server closed counts as a reset."""
        if exc is not None or time.perf_counter() < self._tally.ends_at:
            self._tally.statuses["reset"] += 1
        if not self.ended.done():
            self.ended.set_result(None)


async def _run(payloads: list[bytes], port: int, seconds: float) -> Tally:
    loop = asyncio.get_running_loop()
    tally = Tally(time.perf_counter() + seconds)
    clients = [
        (await loop.create_connection(functools.partial(Connection, payload, tally), "127.0.0.1", port))[1]
        for payload in payloads
    ]
    await asyncio.gather(*(client.ended for client in clients))
    return tally


async def measure(payloads: list[bytes], port: int, seconds: float) -> dict[str, Any]:
    """Load a server over one connection a payload, after a warm-up that is not counted."""
    await _run(payloads, port, WARM_UP_S)
    began = time.perf_counter()
    tally = await _run(payloads, port, seconds)
    took = time.perf_counter() - began
    p50, p99 = np.percentile(tally.latencies, [50, 99]) * 1e3
    return {
        "per_second": len(tally.latencies) / took,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "statuses": dict(tally.statuses),
    }


if __name__ == "__main__":
    form, port, connections, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    path = sys.argv[5] if len(sys.argv) > 5 else "/v2/models/cnn/infer"  # noqa: PLR2004 - the fifth argument
    payloads = [request(form, port, path, number) for number in range(connections)]
    print(json.dumps(uvloop.run(measure(payloads, port, seconds))))
