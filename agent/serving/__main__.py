"""``python -m agent.serving``: the long-lived process that answers inference on sockets it inherits."""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from agent.serving.batcher import Batching
from agent.serving.control import ControlPlane
from agent.serving.dataplane import DataPlane
from agent.serving.http import HttpApp
from agent.serving.loader import TorchLoader
from agent.serving.process import Rpc, configure_log, log, serve, tie_to_parent
from agent.serving.slots import Loader, Models
from agent.serving.waiting import HOLD_S

if TYPE_CHECKING:
    import asyncio

# Threads that computed for long let the event loop in after this time; the interpreter's default is ten times longer.
SWITCH_INTERVAL_S = 0.0005


def main(arguments: list[str] | None = None, loader: Loader | None = None) -> None:
    """Run the server until it is told to end; does not return."""
    options = _parse(arguments)
    tie_to_parent()
    configure_log()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    loader = loader or TorchLoader(options.device, options.threads)
    uvloop.run(_run(options, loader))
    sys.stderr.flush()
    # Threads may still be inside torch, whose teardown order is not theirs: there is nothing left to clean up.
    os._exit(0)


async def _run(options: argparse.Namespace, loader: Loader) -> None:
    plane = DataPlane(Models())
    batching = Batching(options.max_batch_rows, options.max_delay_ms / 1e3, options.max_queue)
    control = ControlPlane(plane, loader, options.hold_s, batching)
    responses: Counter[int] = Counter()
    preparing = control.prepare()
    preparing.add_done_callback(_report)
    limit = options.max_body_mib * 1024 * 1024
    if not options.closed:
        plane.is_open.set()
    data = HttpApp(plane, responses, None, limit), socket.socket(fileno=options.http_fd)
    supervisor = HttpApp(plane, responses, control, limit), socket.socket(fileno=options.control_fd)
    rpc = None
    if options.grpc_fd is not None:
        rpc = _grpc_server(plane, options.grpc_fd, Path(supervisor[1].getsockname()), limit)
    await serve(plane, data, supervisor, options.drain_s, rpc)


def _grpc_server(plane: DataPlane, fd: int, control_path: Path, limit: int) -> Rpc:
    try:
        module = importlib.import_module("agent.serving.grpc.server")
    except ImportError as error:
        log.critical("grpc_missing", error=str(error), hint="pip install 'nibbled[grpc]', or set no serving.grpc_port")
        os._exit(1)
    server: Rpc = module.GrpcServer(plane, socket.socket(fileno=fd), control_path.with_name("grpc.sock"), limit)
    return server


def _report(preparing: asyncio.Future[None]) -> None:
    if preparing.exception() is not None:
        log.critical("imports_failed", error=repr(preparing.exception()))
        os._exit(1)
    log.info("prepared")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m agent.serving", description=__doc__)
    parser.add_argument("--http-fd", type=int, required=True, help="listening TCP socket of the data plane")
    parser.add_argument("--control-fd", type=int, required=True, help="listening Unix socket of the supervisor")
    parser.add_argument("--grpc-fd", type=int, help="listening TCP socket of the data plane over gRPC; needs the extra")
    parser.add_argument("--closed", action="store_true", help="leave the TCP sockets unanswered until told to open")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each model")
    parser.add_argument("--drain-s", type=float, default=10.0, help="seconds that a shutdown may take")
    parser.add_argument(
        "--hold-s", type=float, default=HOLD_S, help="seconds that a request waits while its model is switched"
    )
    standard = Batching()
    parser.add_argument("--max-batch-rows", type=int, default=standard.max_rows, help="rows computed together at most")
    parser.add_argument(
        "--max-delay-ms", type=float, default=0.0, help="milliseconds that a busy model waits for more to join"
    )
    parser.add_argument("--max-queue", type=int, default=standard.max_queue, help="requests of a model that may wait")
    parser.add_argument("--max-body-mib", type=int, default=64)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
