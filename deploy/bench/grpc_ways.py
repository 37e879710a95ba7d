"""What each way to put grpcio beside an event loop adds to a call: `python -m deploy.bench.grpc_ways`.

An echo of 12 KiB, one caller and eight, each way in a process of its own, in turns; figures are medians of the rounds.

- port: grpcio's asyncio server on a port of its own.
- relay: the same behind the socket that the supervisor holds; what the server does.
- threads: grpcio's thread pool, each call handed to the event loop and back.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import uvloop

from agent.adapters.sockets import listen_tcp
from agent.serving.grpc.relay import Relay

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

WAYS = ("port", "relay", "threads")
ROUNDS = 5
CALLS = 1500
BODY_BYTES = 12 * 1024


def _handlers(call: Any) -> Any:
    return grpc.method_handlers_generic_handler("bench.Echo", {"Call": grpc.unary_unary_rpc_method_handler(call)})


async def _serve(way: str, told: Connection) -> None:
    async def echo(body: bytes, _context: Any = None) -> bytes:
        return body

    if way == "threads":
        loop = asyncio.get_running_loop()

        def call(body: bytes, _context: Any) -> bytes:
            return asyncio.run_coroutine_threadsafe(echo(body), loop).result()

        threaded = grpc.server(ThreadPoolExecutor(16), handlers=(_handlers(call),))
        told.send(threaded.add_insecure_port("127.0.0.1:0"))
        threaded.start()
        await asyncio.Event().wait()
    server = grpc.aio.server(handlers=(_handlers(echo),))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grpc.sock"
        port = server.add_insecure_port("127.0.0.1:0" if way == "port" else f"unix:{path}")
        await server.start()
        if way == "relay":
            listener = listen_tcp("127.0.0.1", 0)
            port = listener.getsockname()[1]
            await Relay(listener, path).start()
        told.send(port)
        await server.wait_for_termination()


def _child(way: str, told: Connection) -> None:
    sys.setswitchinterval(0.0005)  # as the server has it
    uvloop.run(_serve(way, told))


def _ask(port: int, callers: int) -> tuple[float, float]:
    """Return the median latency in milliseconds and the calls per second."""
    taken: list[float] = []

    def caller() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call, body = channel.unary_unary("/bench.Echo/Call"), os.urandom(BODY_BYTES)
            for _ in range(CALLS // callers):
                began = time.perf_counter()
                call(body)
                taken.append(time.perf_counter() - began)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(taken) * 1e3, len(taken) / (time.perf_counter() - began)


def main() -> None:
    """Print a row for each way."""
    context = multiprocessing.get_context("spawn")
    rounds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            here, there = context.Pipe()
            child = context.Process(target=_child, args=(way, there), daemon=True)
            child.start()
            port = here.recv()
            _ask(port, 1)
            rounds[way].append((_ask(port, 1)[0], _ask(port, 8)[1]))
            child.kill()
            child.join()
    print("| way | one caller, p50 ms | eight callers, calls/s |\n|---|---|---|")
    for way, figures in rounds.items():
        alone, together = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"| {way} | {alone:.2f} | {together:,.0f} |")


if __name__ == "__main__":
    main()
