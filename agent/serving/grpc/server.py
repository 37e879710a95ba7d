"""grpcio's server on the event loop of the others, with every limit said aloud, and how it ends.

At the end clients are sent away at once (GOAWAY): what they asked is answered, what they ask next goes to a new
connection, which waits for the next server.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import grpc

from agent.serving.grpc.health import HealthService
from agent.serving.grpc.methods import MAX_OPEN, Methods
from agent.serving.grpc.relay import Relay
from agent.serving.grpc.service import InferenceService

if TYPE_CHECKING:
    import socket
    import ssl
    from pathlib import Path

    from agent.serving.access import Access
    from agent.serving.dataplane import DataPlane
    from agent.serving.repository import Repository
    from agent.serving.tracing import Tracer

# For calls that were on their way when their client was sent away.
SETTLE_S = 0.5
# What surrounds the tensors of a message that is as large as a body may be.
ENVELOPE_BYTES = 64 * 1024
HANDSHAKE_MS = 10_000
STREAMS = 256
# A client that is gone without a word is noticed within the sum of the two.
PING_AFTER_MS, PING_TIMEOUT_MS = 60_000, 20_000
# Clients that ask more often whether anybody is there are sent away after two strikes.
CLIENT_PING_MS = 10_000


class GrpcServer:
    """The data plane over gRPC.

    Args:
        plane: the models.
        listener: the inherited TCP socket.
        path: of the Unix socket that grpcio listens on; only this process's user can connect to it.
        max_body_bytes: of a request; larger ones are RESOURCE_EXHAUSTED.
        access: None answers whoever can connect.
        tls: what connections are encrypted with, None leaves them plain.
        repository: None lets nobody change what is loaded.
        tracer: None where no traces are collected.
        max_open: how many inference calls are answered at once; more are UNAVAILABLE.
    """

    def __init__(
        self,
        plane: DataPlane,
        listener: socket.socket,
        path: Path,
        max_body_bytes: int,
        *,
        access: Access | None = None,
        tls: ssl.SSLContext | None = None,
        repository: Repository | None = None,
        tracer: Tracer | None = None,
        max_open: int = MAX_OPEN,
    ) -> None:
        self._path = path
        self._inference, self._health = InferenceService(plane, repository, tracer), HealthService(plane)
        self._relay = Relay(listener, path, tls)
        self._methods = Methods(self._inference, self._health, plane.rpc_codes, access, max_open)
        self._server = grpc.aio.server(
            handlers=(self._methods,),
            options=(
                ("grpc.max_receive_message_length", max_body_bytes + ENVELOPE_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", STREAMS),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
                ("grpc.keepalive_time_ms", PING_AFTER_MS),
                ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", CLIENT_PING_MS),
                ("grpc.http2.max_ping_strikes", 2),
            ),
        )

    async def start(self) -> None:
        """Answer, what has waited in the backlog first."""
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
        finally:
            os.umask(before)
        await self._server.start()
        await self._relay.start()

    async def stop(self, grace_s: float) -> None:
        """Answer what was asked within ``grace_s`` seconds, and nothing else; may be called again to hurry."""
        self._relay.stop()
        self._health.end()
        self._inference.end_streams()
        self._relay.send_away()
        ends_at = time.monotonic() + grace_s
        await asyncio.sleep(min(SETTLE_S, grace_s))
        await self._methods.finished(ends_at - time.monotonic())
        await self._server.stop(max(0.0, ends_at - time.monotonic()))
        await self._relay.finish()
        self._path.unlink(missing_ok=True)
