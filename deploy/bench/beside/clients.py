"""Clients that go on whatever happens, and say what did: for what a server does while it changes, or dies.

    python -m deploy.bench.beside.clients PORT CONNECTIONS EXPECTED.json

They send the same JSON request over connections that are kept alive until standard input ends; a line on it begins a
new phase. One JSON object a phase is printed: statuses, percentiles, answers that their version did not explain, and
the longest time in which nobody was answered. ``EXPECTED.json`` maps a version to its first score; one under ``*``
stands for every version.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvloop

from deploy.bench.beside.load import request

PAUSE_S = 0.02
"""Before a client whose connection failed tries again."""
PATIENCE_S = 60.0
TOLERANCE = 1e-4


class Phase:
    """What happened between two lines of standard input."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.untrue = 0
        self.answered_at = time.perf_counter()
        self.gap_s = 0.0

    def answered(self, began: float, status: str) -> None:
        """Count an answer."""
        now = time.perf_counter()
        self.latencies.append(now - began)
        self.statuses[status] += 1
        if status == "200":
            self.gap_s = max(self.gap_s, now - self.answered_at)
            self.answered_at = now

    def to_json(self) -> dict[str, Any]:
        """Return what is printed."""
        self.gap_s = max(self.gap_s, time.perf_counter() - self.answered_at)
        p50, p99 = np.percentile(self.latencies or [0.0], [50, 99]) * 1e3
        return {
            "statuses": dict(self.statuses),
            "untrue": self.untrue,
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "longest_gap_s": self.gap_s,
        }


class Clients:
    """All connections to one server."""

    def __init__(self, port: int, expected: dict[str, float]) -> None:
        self._port = port
        self._payload = request("json", port, "/v2/models/cnn/infer")
        self._expected = expected
        self.phase = Phase()

    async def run(self) -> None:
        """One connection, opened again whenever it ends."""
        writer: asyncio.StreamWriter | None = None
        while True:
            began = time.perf_counter()
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                status, body, closes = await asyncio.wait_for(self._ask(reader, writer), PATIENCE_S)
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                self.phase.statuses[_name(error)] += 1
                writer = None
                await asyncio.sleep(PAUSE_S)
                continue
            self.phase.answered(began, status)
            if status == "200":
                self._check(body)
            else:
                await asyncio.sleep(PAUSE_S)
            if closes:
                writer.close()
                writer = None

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, bytes, bool]:
        writer.write(self._payload)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        return head[9:12].decode(), await reader.readexactly(length), b"connection: close" in head

    def _check(self, body: bytes) -> None:
        reply = orjson.loads(body)
        expected = self._expected.get(reply.get("model_version") or "*", self._expected.get("*"))
        if expected is None or abs(reply["outputs"][0]["data"][0] - expected) > TOLERANCE:
            self.phase.untrue += 1


def _name(error: BaseException) -> str:
    return "refused" if isinstance(error, ConnectionRefusedError) else "reset" if isinstance(error, OSError) else "cut"


async def _main(port: int, connections: int, expected: dict[str, float]) -> None:
    clients = Clients(port, expected)
    tasks = [asyncio.create_task(clients.run()) for _ in range(connections)]
    loop = asyncio.get_running_loop()
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        print(json.dumps(clients.phase.to_json()), flush=True)
        if not line:
            break
        clients.phase = Phase()
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), int(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))))
