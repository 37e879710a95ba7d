"""The methods of ``GRPCInferenceService``, on the data plane and the repository that HTTP has as well.

A call's deadline is the limit of its wait in the queue: what expired there is not computed. A call that its client
cancelled leaves the queue. A stream's questions are computed side by side, and answered in the order of their coming.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import structlog
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from agent.serving.dataplane import model_config, model_metadata, model_statistics, server_metadata
from agent.serving.errors import BadRequestError, ExpiredError, ServingError, UnavailableError
from agent.serving.grpc import inference_pb2 as pb
from agent.serving.grpc.codec import format_response, parse_request, repository_parameters
from agent.serving.repository import ReadOnlyRepository
from agent.serving.validation import timeout_s

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from agent.serving.dataplane import DataPlane
    from agent.serving.repository import Repository
    from agent.serving.slots import Slot
    from agent.serving.tracing import Tracer

    Headers = Sequence[tuple[bytes, bytes]]

M = TypeVar("M")
log = structlog.get_logger("grpc")
# Questions of one stream that are read before the first of them is answered.
STREAM_WINDOW = 16
# A deadline is told in three digits, rounded up (grpc's core, ``Timeout::FromMillis``): a client that gives up at its
# own is heard of up to this share of it before the told one has passed.
ROUNDED = 0.01
FINAL_WANTED, FINAL = "triton_enable_empty_final_response", "triton_final_response"


class InferenceService:
    """What each method answers. Raises ``ServingError``.

    Args:
        plane: what is shared with the other protocols.
        repository: None shows it, and lets nobody change it.
        tracer: hears of every question, None where no traces are collected.
    """

    def __init__(self, plane: DataPlane, repository: Repository | None = None, tracer: Tracer | None = None) -> None:
        self._plane = plane
        self._repository = repository or ReadOnlyRepository(plane)
        self._tracer = tracer
        self._readers: set[asyncio.Task[None]] = set()

    async def server_live(self, _request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Answer that this process answers."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Answer whether requests should be sent here."""
        return pb.ServerReadyResponse(ready=self._plane.is_ready)

    async def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Answer whether a model answers; one that nobody knows does not, which is no error."""
        with contextlib.suppress(ServingError):
            self._slot(request)
            return pb.ModelReadyResponse(ready=not self._plane.is_draining)
        return pb.ModelReadyResponse(ready=False)

    async def server_metadata(self, _request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Describe the server."""
        described = server_metadata()
        # Binary tensor data is an extension of HTTP alone: here they are raw as a matter of course.
        described["extensions"].remove("binary_tensor_data")
        return _message(described, pb.ServerMetadataResponse)

    async def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Describe a model."""
        return _message(model_metadata(self._slot(request)), pb.ModelMetadataResponse)

    async def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """Describe a model as Triton's tools read it."""
        return _message({"config": model_config(self._slot(request))}, pb.ModelConfigResponse)

    async def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """Return counters of a model, or of all that answer."""
        slots = [self._slot(request)] if request.name else self._plane.models.all_active()
        return _message({"model_stats": [model_statistics(slot) for slot in slots]}, pb.ModelStatisticsResponse)

    async def repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """List what is loaded."""
        entries = await self._ask(["index"], {"ready": request.ready})
        return _message({"models": [_without(entry, "parameters") for entry in entries]}, pb.RepositoryIndexResponse)

    async def model_load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """Load an artifact, where that may be done from here; agree when there is nothing to do."""
        await self._ask(["models", request.model_name, "load"], {"parameters": repository_parameters(request)})
        return pb.RepositoryModelLoadResponse()

    async def model_unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        """Unload a model, where that may be done from here."""
        await self._ask(["models", request.model_name, "unload"], {"parameters": repository_parameters(request)})
        return pb.RepositoryModelUnloadResponse()

    async def _ask(self, rest: list[str], request: dict[str, Any]) -> Any:
        return await self._repository.answer("repository", rest, "POST", orjson.dumps(request))

    async def infer(
        self, request: pb.ModelInferRequest, limit_s: float | None, headers: Headers = ()
    ) -> pb.ModelInferResponse:
        """Answer a question.

        Args:
            request: the question.
            limit_s: what is left of the call's deadline, None for none.
            headers: the call's metadata, which name the trace it belongs to.
        """
        began = time.perf_counter()
        name, version = request.model_name, request.model_version or None
        self._plane.expect(name, version)
        slot = self._plane.models.answering(name, version)
        waited_s = 0.0
        try:
            if limit_s is not None and limit_s <= 0:
                raise ExpiredError("the call's deadline had passed when it arrived")
            question = parse_request(request, limit_s)
            if slot is None:
                slot = await self._plane.await_slot(name, version, request.ByteSize(), timeout_s(question))
                waited_s = time.perf_counter() - began
            answer = await self._plane.infer(slot, question, waited_s)
            reply = format_response(answer.wire)
        except ServingError as error:
            _refused(slot, error.outcome, began)
            self._record(headers, name, slot, began, error=str(error))
            raise
        except asyncio.CancelledError:
            is_late = limit_s is not None and time.perf_counter() - began >= (1 - ROUNDED) * limit_s
            _refused(slot, "expired" if is_late else "canceled", began)
            raise
        slot.stats.answered(answer.rows, time.perf_counter() - began, answer.timing, time.time_ns() // 1_000_000)
        self._record(headers, name, slot, began, timing=answer.timing)
        return reply

    def _record(self, headers: Headers, name: str, slot: Slot | None, began: float, **told: Any) -> None:
        if self._tracer is not None:
            version = slot.version if slot is not None else ""
            self._tracer.record(headers, name, version, time.perf_counter() - began, **told)

    async def stream(
        self, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        """Answer the questions of a stream; one that cannot be answered gets its error, and the stream goes on."""
        answers: asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None] = asyncio.Queue(STREAM_WINDOW)
        begun: set[asyncio.Task[pb.ModelStreamInferResponse]] = set()

        async def read() -> None:
            try:
                async for raw in requests:
                    answer = asyncio.create_task(self._answer(raw, context))
                    begun.add(answer)
                    answer.add_done_callback(begun.discard)
                    await answers.put(answer)
            finally:
                await answers.put(None)

        reader = asyncio.create_task(read())
        self._readers.add(reader)
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
        finally:
            self._readers.discard(reader)
            for task in (reader, *begun):
                task.cancel()
        if self._plane.is_draining:
            raise UnavailableError("the server is shutting down")

    def end_streams(self) -> None:
        """Read no more questions of streams: what was read is answered, then each of them ends."""
        for reader in self._readers:
            reader.cancel()

    async def _answer(self, raw: bytes, context: Any) -> pb.ModelStreamInferResponse:
        request = pb.ModelInferRequest()
        try:
            request = parse(raw, pb.ModelInferRequest)
            reply = await self.infer(request, context.time_remaining(), headers_of(context))
        except ServingError as error:
            known = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            return pb.ModelStreamInferResponse(error_message=str(error), infer_response=known)
        except Exception:
            log.exception("stream_failed", model=request.model_name[:128])
            return pb.ModelStreamInferResponse(error_message="internal error")
        if request.parameters[FINAL_WANTED].bool_param:
            reply.parameters[FINAL].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=reply)

    def _slot(self, request: Any) -> Slot:
        return self._plane.models.active(request.name, request.version or None)


def headers_of(call: Any) -> Headers:
    """Return the metadata of a call in the form of HTTP's headers; ``call`` is its context, or its details."""
    given = call.invocation_metadata
    given = given() if callable(given) else given
    return [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in given or ()]


def parse(raw: bytes, kind: Any) -> Any:
    """Return a message of ``kind``; raises ``BadRequestError``."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise BadRequestError(f"the message is not a {kind.DESCRIPTOR.name}: {error}") from None


def _message(described: dict[str, Any], kind: type[M]) -> M:
    message: M = ParseDict(described, kind())
    return message


def _without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


def _refused(slot: Slot | None, outcome: str, began: float) -> None:
    if slot is not None:
        slot.stats.refused(outcome, time.perf_counter() - began)
