"""The table of methods, and what every call has in common: its token, its limit, its counter, its errors.

Tokens are looked at, and how many questions are open at once is bounded, before messages are read. Methods that no
table has are UNIMPLEMENTED, as gRPC itself answers. Without a token, where one is needed, the health of the whole can
be asked for, as over HTTP; that of a model by its name needs one.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from agent.serving.errors import ServingError, UnavailableError
from agent.serving.grpc import health_pb2, inference_pb2
from agent.serving.grpc.codes import code_of, detail_of
from agent.serving.grpc.health import WHOLE
from agent.serving.grpc.service import headers_of, parse

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from agent.serving.access import Access
    from agent.serving.grpc.health import HealthService
    from agent.serving.grpc.service import InferenceService

log = structlog.get_logger("grpc")
# More than the queue of one model, so that a full queue is what clients are told of.
MAX_OPEN = 512
INFERENCE, HEALTH = "/inference.GRPCInferenceService/", "/grpc.health.v1.Health/"
INFER, STREAM = INFERENCE + "ModelInfer", INFERENCE + "ModelStreamInfer"
OPEN = frozenset({INFERENCE + "ServerLive", INFERENCE + "ServerReady", HEALTH + "Check", HEALTH + "Watch"})
CHANGES = INFERENCE + "Repository"


class Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Finds the handler of a method.

    Args:
        inference: the methods of the protocol.
        health: those of the health service.
        codes: calls by how they ended.
        access: None answers whoever can connect.
        max_open: how many inference calls are answered at once.
    """

    def __init__(
        self,
        inference: InferenceService,
        health: HealthService,
        codes: Counter[str],
        access: Access | None = None,
        max_open: int = MAX_OPEN,
    ) -> None:
        self._inference = inference
        self._health = health
        self._codes = codes
        self._access = access
        self._max_open = max_open
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        unary = {
            INFERENCE + "ServerLive": (inference.server_live, inference_pb2.ServerLiveRequest),
            INFERENCE + "ServerReady": (inference.server_ready, inference_pb2.ServerReadyRequest),
            INFERENCE + "ModelReady": (inference.model_ready, inference_pb2.ModelReadyRequest),
            INFERENCE + "ServerMetadata": (inference.server_metadata, inference_pb2.ServerMetadataRequest),
            INFERENCE + "ModelMetadata": (inference.model_metadata, inference_pb2.ModelMetadataRequest),
            INFERENCE + "ModelConfig": (inference.model_config, inference_pb2.ModelConfigRequest),
            INFERENCE + "ModelStatistics": (inference.model_statistics, inference_pb2.ModelStatisticsRequest),
            INFERENCE + "RepositoryIndex": (inference.repository_index, inference_pb2.RepositoryIndexRequest),
            INFERENCE + "RepositoryModelLoad": (inference.model_load, inference_pb2.RepositoryModelLoadRequest),
            INFERENCE + "RepositoryModelUnload": (inference.model_unload, inference_pb2.RepositoryModelUnloadRequest),
        }
        self._handlers = {name: self._unary(answer, kind) for name, (answer, kind) in unary.items()}
        self._handlers[INFER] = grpc.unary_unary_rpc_method_handler(self._infer)
        self._handlers[STREAM] = grpc.stream_stream_rpc_method_handler(self._stream)
        self._handlers[HEALTH + "Check"] = grpc.unary_unary_rpc_method_handler(self._check)
        self._handlers[HEALTH + "Watch"] = grpc.unary_stream_rpc_method_handler(self._watch)

    def service(self, details: Any) -> Any:
        """Return the handler of ``details.method``, None when there is none."""
        try:
            if details.method not in OPEN:
                self._admit(details, is_change=details.method.startswith(CHANGES))
            if details.method in (INFER, STREAM) and self._open >= self._max_open:
                raise UnavailableError(f"{self._max_open} calls are open, no more are taken")
        except ServingError as error:
            return self._refusing(error)
        return self._handlers.get(details.method)

    async def finished(self, timeout_s: float) -> None:
        """Return when no inference call is open, at the latest after ``timeout_s`` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), max(0.0, timeout_s))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        self._open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    def _unary(self, answer: Callable[[Any], Awaitable[Any]], kind: Any) -> Any:
        async def call(raw: bytes, context: Any) -> bytes:
            async with self._counted(context):
                reply: bytes = (await answer(parse(raw, kind))).SerializeToString()
            return reply

        return grpc.unary_unary_rpc_method_handler(call)

    async def _infer(self, raw: bytes, context: Any) -> bytes:
        with self._opened():
            async with self._counted(context):
                request = parse(raw, inference_pb2.ModelInferRequest)
                answer = await self._inference.infer(request, context.time_remaining(), headers_of(context))
                reply: bytes = answer.SerializeToString()
        return reply

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        with self._opened():
            async with self._counted(context), aclosing(self._inference.stream(requests, context)) as answers:
                async for answer in answers:
                    yield answer.SerializeToString()

    async def _check(self, raw: bytes, context: Any) -> bytes:
        async with self._counted(context):
            reply: bytes = (await self._health.check(self._asked(raw, context))).SerializeToString()
        return reply

    async def _watch(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        async with self._counted(context), aclosing(self._health.watch(self._asked(raw, context))) as states:
            async for state in states:
                yield state.SerializeToString()

    def _asked(self, raw: bytes, context: Any) -> health_pb2.HealthCheckRequest:
        request: health_pb2.HealthCheckRequest = parse(raw, health_pb2.HealthCheckRequest)
        if request.service not in WHOLE:
            self._admit(context)
        return request

    def _admit(self, call: Any, *, is_change: bool = False) -> None:
        if self._access is not None:
            self._access.admit(dict(headers_of(call)).get(b"authorization", b""), is_change=is_change)

    def _refusing(self, error: ServingError) -> Any:
        async def refuse(_requests: AsyncIterator[bytes], context: Any) -> None:
            async with self._counted(context):
                raise error

        return grpc.stream_unary_rpc_method_handler(refuse)

    @asynccontextmanager
    async def _counted(self, context: Any) -> AsyncIterator[None]:
        """Count how a call ends, and tell its client what went wrong."""
        code, detail = grpc.StatusCode.OK, ""
        try:
            yield
        except ServingError as error:
            code, detail = code_of(error), detail_of(error)
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            log.exception("rpc_failed")
            code, detail = grpc.StatusCode.INTERNAL, "internal error"
        finally:
            self._codes[code.name] += 1
        if code is not grpc.StatusCode.OK:
            await context.abort(code, detail)
