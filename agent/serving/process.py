"""The process around the servers: its tie to the supervisor, its sockets, its log, and how it ends.

Two uvicorn servers, and gRPC's where it is configured, share one event loop. At SIGTERM readiness turns to 503 and
every reply closes its connection; for ``LINGER_S`` new connections are still taken, so that clients between two
requests learn of it by a reply instead of a reset; then the sockets are left to the supervisor, in whose backlog new
connections wait for the next server.

``END`` is the same where no server comes next, and the supervisor has closed its copies of the sockets. The kernel
resets what waits in the backlog of a socket whose last copy is closed. So connections that have begun are taken and
answered for ``REST_S`` more, while none begins; then the socket is closed, and whoever comes is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog
import uvicorn

from agent.log_stream import LogStream
from agent.serving.connection import Connection
from agent.serving.handshakes import begin_no_connection
from agent.serving.lost import LOST_STATUS
from agent.serving.tls import HANDSHAKE_S
from agent.signals import END

if TYPE_CHECKING:
    import socket
    import ssl
    from collections import Counter
    from collections.abc import Generator, Sequence

    from agent.serving.dataplane import DataPlane
    from agent.serving.http import HttpApp
    from agent.serving.limits import Limits

log = structlog.get_logger("server")
LINGER_S = 0.5
REST_S = 0.5
"""For the last connections to be taken, and to send their requests."""
LAST_WORDS_S = 0.2
"""For replies on their way, when a process ends that has lost its device."""
# What uvicorn needs besides its own deadline: it looks every 0.1 s whether it should end, and sleeps while ending.
UVICORN_MARGIN_S = 0.5
BACKLOG = 2048
OOM_SCORE_ADJ = 200
"""Between the supervisor, whose unit sets less, and the builder's 1000 (``proc(5)``)."""
# How long the end of an encrypted connection waits for the client's word.
TLS_END_S = 2.0
# File descriptors that are not for connections: artifacts, imports, and clients that are told that there is no room.
SPARE_FILES = 16
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class OrphanError(Exception):
    """The supervisor was gone before this process could be tied to it."""


def tie_to_parent(parent: int | None = None) -> None:
    """Let the kernel kill this process when the thread that started it ends.

    Args:
        parent: its process, which may have ended while this one was still importing; None for whoever is it now.

    Raises:
        OrphanError: it has ended.
    """
    parent = os.getppid() if parent is None else parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        raise OrphanError(f"the parent {parent} ended while this process started")


def die_before_parent() -> None:
    """Take no part in the supervisor's protection when memory runs out: it must outlive this process."""
    with contextlib.suppress(OSError, ValueError):
        score = Path("/proc/self/oom_score_adj")
        if int(score.read_text(encoding="ascii")) < OOM_SCORE_ADJ:
            score.write_text(str(OOM_SCORE_ADJ), encoding="ascii")


def configure_log() -> None:
    """Write JSON lines to stderr, those of libraries included; stdout stays empty whatever a library prints."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lines: Any = LogStream(sys.stderr)
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(lines),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    # What strangers send is counted, not written down.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def fitting(limits: Limits) -> Limits:
    """Return ``limits`` with no more connections than there are file descriptors for, having asked for enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(list(Path("/proc/self/fd").iterdir())) + SPARE_FILES
    wanted = limits.max_connections + taken
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            log.warning("few_file_descriptors", limit=soft, max_connections=max(1, soft - taken))
            return replace(limits, max_connections=max(1, soft - taken))
    return limits


@dataclass(frozen=True)
class Listener:
    """What answers on one inherited socket, within which limits; ``tls`` None leaves it unencrypted."""

    app: HttpApp
    socket: socket.socket
    limits: Limits
    responses: Counter[int]
    tls: ssl.SSLContext | None = None


class _Server(uvicorn.Server):
    """A uvicorn server whose signals and listening socket belong to the process around it."""

    def __init__(self, listener: Listener, drain_s: float) -> None:
        self._listener = listener
        config = uvicorn.Config(
            listener.app,
            loop="none",
            http=Connection,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=listener.limits.keep_alive_s,
            timeout_graceful_shutdown=max(1, round(drain_s - LINGER_S - REST_S - UVICORN_MARGIN_S)),
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, with bounds that it cannot be told."""
        listener = self._listener
        bounds: dict[str, Any] = {}
        if listener.tls is not None:
            bounds = {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": TLS_END_S}
        loop = asyncio.get_running_loop()

        def connect() -> Connection:
            return Connection(
                self.config,
                self.server_state,
                {},
                loop,
                limits=listener.limits,
                responses=listener.responses,
                direct=listener.app.direct,
            )

        self.servers = [
            await loop.create_server(connect, sock=each, ssl=listener.tls, backlog=BACKLOG, **bounds)
            for each in sockets or ()
        ]
        self.started = True


class Rpc(Protocol):
    """A further protocol on the data plane, with a socket of its own."""

    async def start(self) -> None:
        """Begin to answer."""

    async def stop(self, grace_s: float) -> None:
        """Finish what was asked within ``grace_s`` seconds; may be called again to hurry."""


async def serve(plane: DataPlane, data: Listener, control: Listener, drain_s: float, rpc: Rpc | None = None) -> None:
    """Answer on inherited listening sockets until SIGTERM, SIGINT or ``END``, then drain; a second one ends at once.

    The data plane's socket is answered once ``plane.is_open`` is set: a server that replaces another gets its models
    back first, and clients wait in the backlog meanwhile instead of hearing that their model is unknown. They hear so
    after all when the end comes first, and no server after it.
    """
    listeners = (data, control)
    servers = [_Server(each, drain_s) for each in listeners]
    asked, forced, is_end = _signals(plane, servers)

    async def answer(server: _Server, listener: Listener) -> None:
        if listener is data:
            await _either(plane.is_open, asked)
        if is_end.is_set() or not asked.is_set():
            await server.serve(sockets=[listener.socket])

    running = [
        asyncio.create_task(answer(server, listener)) for server, listener in zip(servers, listeners, strict=True)
    ]
    if rpc is not None:
        running.append(asyncio.create_task(_answer_rpc(rpc, plane.is_open, asked, forced, drain_s)))
    log.info("listening", pid=os.getpid())
    await _until_over(plane, asked, running)
    log.info("draining", in_flight=_in_flight(plane))
    await asyncio.sleep(LINGER_S)
    if is_end.is_set():
        begin_no_connection(data.socket)
        await asyncio.sleep(REST_S)
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*running)
    log.info("stopped", in_flight=_in_flight(plane))


def _signals(plane: DataPlane, servers: Sequence[_Server]) -> tuple[asyncio.Event, asyncio.Event, asyncio.Event]:
    """Return what is set when the process is asked to end, when it is asked to hurry, and when no server follows."""
    asked, forced, is_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def stop(number: int) -> None:
        if asked.is_set():
            log.warning("drain_cut_short", in_flight=_in_flight(plane))
            for server in servers:
                server.force_exit = True
            forced.set()
        if number == END:
            is_end.set()
        plane.drain()
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT, END):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return asked, forced, is_end


async def _until_over(plane: DataPlane, asked: asyncio.Event, running: list[asyncio.Task[None]]) -> None:
    """Return when the process is to drain; end it when its device is lost."""
    lost = asyncio.create_task(plane.is_lost.wait())
    await asyncio.wait([asyncio.create_task(asked.wait()), lost, *running], return_when=asyncio.FIRST_COMPLETED)
    if lost.done():
        # Whoever waits for a thread that is stuck in a driver waits for ever: what could be answered was.
        await asyncio.sleep(LAST_WORDS_S)
        LogStream(sys.stderr).flush()
        os._exit(LOST_STATUS)
    lost.cancel()


async def _answer_rpc(
    rpc: Rpc, opened: asyncio.Event, asked: asyncio.Event, forced: asyncio.Event, drain_s: float
) -> None:
    await _either(opened, asked)
    if asked.is_set():
        return
    await rpc.start()
    await asked.wait()
    stopping = asyncio.create_task(rpc.stop(max(0.0, drain_s - UVICORN_MARGIN_S)))
    hurrying = asyncio.create_task(forced.wait())
    await asyncio.wait([stopping, hurrying], return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await rpc.stop(0)
    await stopping
    hurrying.cancel()


async def _either(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def _in_flight(plane: DataPlane) -> int:
    return sum(slot.in_flight for _, slot in plane.models.slots())
