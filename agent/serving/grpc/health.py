"""``grpc.health.v1``: the server as a whole, its inference service, and each model by its name."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from agent.serving.errors import NotFoundError
from agent.serving.grpc import health_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.serving.dataplane import DataPlane

# How late a change may be told to those who watch.
WATCH_S = 0.1
WHOLE = ("", "inference.GRPCInferenceService")
_Status = pb.HealthCheckResponse.ServingStatus


class HealthService:
    """What health checks are told.

    Args:
        plane: what is shared with the other protocols.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._ending = asyncio.Event()

    async def check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        """Answer for one service; raises ``NotFoundError``."""
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            raise NotFoundError(f"there is no service {request.service[:128]!r}")
        return pb.HealthCheckResponse(status=status)

    async def watch(self, request: pb.HealthCheckRequest) -> AsyncGenerator[pb.HealthCheckResponse, None]:
        """Tell the state of one service, and every change of it."""
        last = None
        while True:
            is_last = self._ending.is_set()
            status = self._status(request.service)
            if status != last:
                yield pb.HealthCheckResponse(status=status)
            last = status
            if is_last:
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ending.wait(), WATCH_S)

    def end(self) -> None:
        """Tell the last state to those who watch, and let them go."""
        self._ending.set()

    def _status(self, service: str) -> _Status:
        if service in WHOLE:
            is_ready = self._plane.is_ready
        elif (model := self._plane.models.find(service)) is not None:
            is_ready = model.active is not None and not self._plane.is_draining
        else:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if is_ready else _Status.NOT_SERVING
