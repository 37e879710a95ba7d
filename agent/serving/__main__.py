"""``python -m agent.serving``: the long-lived process that answers inference on sockets it inherits."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import socket
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from agent.log_stream import LogStream
from agent.serving.access import Access
from agent.serving.batcher import Batching
from agent.serving.control import ControlPlane
from agent.serving.dataplane import DataPlane
from agent.serving.http import HttpApp
from agent.serving.limits import DEFAULT, Limits
from agent.serving.loader import TorchLoader
from agent.serving.process import Listener, Rpc, configure_log, die_before_parent, fitting, log, serve, tie_to_parent
from agent.serving.repository import Repository
from agent.serving.slots import Loader, Models
from agent.serving.tls import HTTP, HTTP2, RenewedContext
from agent.serving.tracing import Tracer
from agent.serving.waiting import HOLD_S
from agent.tokens import TokenFile

if TYPE_CHECKING:
    import asyncio
    import ssl

# Threads that computed for long let the event loop in after this time, and it lets them; the interpreter's default is
# five hundred times longer. A thread that computes needs the interpreter only for moments, before each operator.
SWITCH_INTERVAL_S = 0.00001
# The supervisor waits five seconds longer than the drain may take.
LAST_SPANS_S = 2.0


def main(arguments: list[str] | None = None, loader: Loader | None = None) -> None:
    """Run the server until it is told to end; does not return."""
    options = _parse(arguments)
    tie_to_parent(options.parent)
    die_before_parent()
    configure_log()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    loader = loader or TorchLoader(options.device, options.threads)
    gc.freeze()  # what was imported stays: a collection that walks it keeps everybody waiting for tens of milliseconds
    uvloop.run(_run(options, loader))
    LogStream(sys.stderr).flush()
    # Threads may still be inside torch, whose teardown order is not theirs: there is nothing left to clean up.
    os._exit(0)


async def _run(options: argparse.Namespace, loader: Loader) -> None:
    plane = DataPlane(Models())
    batching = Batching(options.max_batch_rows, options.max_delay_ms / 1e3, options.max_queue)
    control = ControlPlane(plane, loader, options.hold_s, batching)
    responses: Counter[int] = Counter()
    preparing = control.prepare()
    preparing.add_done_callback(_report)
    limits = Limits(
        max_body_bytes=options.max_body_bytes,
        max_connections=options.max_connections,
        head_s=options.head_s,
        body_s=options.body_s,
    )
    if not options.closed:
        plane.is_open.set()
    tracer = Tracer(options.otlp_endpoint) if options.otlp_endpoint else None
    shared = _shared(options, control, tracer)
    data = _data(options, plane, shared, limits, responses)
    app = HttpApp(plane, responses, control, limits=limits)
    supervisor = Listener(app, socket.socket(fileno=options.control_fd), limits, responses)
    rpc = None
    if options.grpc_fd is not None:
        path = Path(supervisor.socket.getsockname()).with_name("grpc.sock")
        rpc = _grpc_server(options, plane, shared, path, limits.max_body_bytes)
    await serve(plane, data, supervisor, options.drain_s, rpc)
    if tracer is not None:
        tracer.close(LAST_SPANS_S)


@dataclass(frozen=True)
class _Shared:
    """What both ports have in common: tokens and the repository only where their files are given, and the tracer."""

    access: Access | None
    repository: Repository | None
    tracer: Tracer | None


def _shared(options: argparse.Namespace, control: ControlPlane, tracer: Tracer | None) -> _Shared:
    users = TokenFile(options.token_file) if options.token_file else None
    administrators = TokenFile(options.admin_token_file) if options.admin_token_file else None
    access = Access(users, administrators) if users or administrators else None
    return _Shared(access, Repository(control, options.store) if administrators else None, tracer)


def _tls(options: argparse.Namespace, protocol: str) -> ssl.SSLContext | None:
    return RenewedContext(options.cert_file, options.key_file, protocol).context if options.cert_file else None


def _grpc_server(options: argparse.Namespace, plane: DataPlane, shared: _Shared, path: Path, limit: int) -> Rpc:
    try:
        module = importlib.import_module("agent.serving.grpc.server")
    except ImportError as error:
        log.critical("grpc_missing", error=str(error), hint="pip install 'nibbled[grpc]', or set no serving.grpc_port")
        os._exit(1)
    server: Rpc = module.GrpcServer(
        plane,
        socket.socket(fileno=options.grpc_fd),
        path,
        limit,
        access=shared.access,
        tls=_tls(options, HTTP2),
        repository=shared.repository,
        tracer=shared.tracer,
    )
    return server


def _data(
    options: argparse.Namespace, plane: DataPlane, shared: _Shared, limits: Limits, responses: Counter[int]
) -> Listener:
    """Return what strangers reach over HTTP."""
    limits = fitting(limits)
    app = HttpApp(
        plane,
        responses,
        shared.repository,
        limits=limits,
        access=shared.access,
        groups=("repository",),
        log_every=options.log_every,
        tracer=shared.tracer,
    )
    return Listener(app, socket.socket(fileno=options.http_fd), limits, responses, _tls(options, HTTP))


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
    parser.add_argument("--parent", type=int, help="process id of the supervisor, without which this one ends")
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
    parser.add_argument("--otlp-endpoint", help="URL of a collector of traces")
    parser.add_argument("--max-body-bytes", type=int, default=DEFAULT.max_body_bytes)
    parser.add_argument("--max-connections", type=int, default=DEFAULT.max_connections)
    parser.add_argument("--head-s", type=float, default=DEFAULT.head_s, help="seconds for a request's headers")
    parser.add_argument("--body-s", type=float, default=DEFAULT.body_s, help="seconds for a request's body")
    parser.add_argument("--token-file", type=Path, help="tokens for inference; none lets everyone ask")
    parser.add_argument("--admin-token-file", type=Path, help="tokens for the repository; none keeps it away")
    parser.add_argument("--store", type=Path, help="directory that administrators load artifacts from")
    parser.add_argument("--cert-file", type=Path, help="certificate of the TCP socket; none leaves it unencrypted")
    parser.add_argument("--key-file", type=Path, help="its key")
    parser.add_argument("--log-every", type=int, default=0, help="requests to a line of the log; 0 for none")
    options = parser.parse_args(arguments)
    if (options.cert_file is None) != (options.key_file is None):
        parser.error("--cert-file and --key-file belong together")
    return options


if __name__ == "__main__":
    main()
