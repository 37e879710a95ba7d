"""What clients can ask, whatever the protocol that carries the question. HTTP is one such protocol.

Answers requests with the release that is active, and describes models in the protocol's own objects. It parses nothing
and knows no status codes beyond those that its errors carry.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from agent import __version__
from agent.exhaustion import is_out_of_memory
from agent.serving.errors import BadRequestError, ModelFailedError, ServingError, UnavailableError
from agent.serving.lost import is_lost
from agent.serving.oip import InferResponse
from agent.serving.tensors import Tensor, fits_half, is_finite
from agent.serving.validation import check_inputs, check_outputs, timeout_s

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.serving.batcher import Answer
    from agent.serving.oip import InferRequest
    from agent.serving.slots import Models, Slot
    from agent.serving.stats import Timing
    from agent.serving.tensors import TensorSpec

JsonObject = dict[str, Any]

log = structlog.get_logger("dataplane")

NAME = "nibbled"
PLATFORM = "pytorch"
EXTENSIONS = ("binary_tensor_data", "parameters", "model_configuration", "statistics")


@dataclass(frozen=True)
class Inference:
    """A reply, how many rows it answers, and where the time went."""

    wire: InferResponse
    rows: int
    timing: Timing


class DataPlane:
    """The models, and whether the server is on its way out.

    Attributes:
        is_draining: set once, when the process was asked to end.
        rpc_codes: calls over gRPC by how they ended; stays empty without it.
        is_open: set once the data plane's socket may be answered; until then connections wait in its backlog.
        is_lost: set once an error said that this process can compute nothing more.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.is_draining = False
        self.rpc_codes: Counter[str] = Counter()
        self.is_open = asyncio.Event()
        self.is_lost = asyncio.Event()
        self.started_at = time.monotonic()

    @property
    def is_ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.models.is_ready and not self.is_draining

    def judge(self, error: BaseException) -> None:
        """Look at what a model raised: some errors leave the whole process without a device."""
        if not self.is_lost.is_set() and is_lost(error):
            log.critical("device_lost", error=f"{type(error).__name__}: {error}"[:2000])
            self.drain()
            self.is_lost.set()

    def drain(self) -> None:
        """Begin to end: what waits for a switch is answered, as no release may come any more."""
        self.is_draining = True
        for model in self.models:
            model.room.turn_away("the server is shutting down")

    def expect(self, name: str, version: str | None) -> None:
        """Raise for a request that would be refused whatever its body says: 404 or 503."""
        if self.models.answering(name, version) is None:
            self.models.get(name).room.expect_place()

    async def await_slot(self, name: str, version: str | None, size: int, timeout_s: float | None) -> Slot:
        """Return the slot that answers, as soon as one does.

        Args:
            name: of the model.
            version: compared with that of the release that becomes active.
            size: of the request's body, in bytes.
            timeout_s: the request's own, None for none.

        Raises:
            NotFoundError: there is no such model, or another version answers.
            UnavailableError: nothing came in time, or too many wait already.
        """
        since = asyncio.get_running_loop().time()
        while (slot := self.models.answering(name, version)) is None:
            await self.models.get(name).room.wait(size, since, timeout_s)
        return slot

    async def infer(self, slot: Slot, request: InferRequest, waited_s: float = 0.0) -> Inference:
        """Answer a request with ``slot``; ``waited_s`` of its timeout have passed.

        The caller looks the slot up and calls this without giving up the event loop in between, and counts the
        outcome once it knows whether the answer could be sent.

        Raises:
            BadRequestError: it does not fit the model.
            UnavailableError: the queue is full, or the request's timeout passed in it.
            ModelFailedError: the model raised.
        """
        question = check_inputs(request.inputs, slot.network.inputs)
        wanted = check_outputs(request, slot.network.outputs)
        batcher = self.models.get(slot.model).batcher
        try:
            answer = await batcher.submit(slot, question, timeout_s(request), waited_s=waited_s)
        except ServingError:
            raise
        except Exception as error:
            raise _explain(error, slot) from error
        return _inference(slot, request, wanted, answer, question.rows)

    def ask(
        self, slot: Slot, request: InferRequest, tell: Callable[[Inference | Exception], None]
    ) -> Callable[[], None]:
        """Queue a request for ``slot``, as ``infer`` does, and return what takes it out of the queue again.

        ``tell`` hears the answer, or the error that ``infer`` would raise, once and on the event loop; what is wrong
        with the request is raised here.
        """
        question = check_inputs(request.inputs, slot.network.inputs)
        wanted = check_outputs(request, slot.network.outputs)

        def settled(outcome: Answer | Exception) -> None:
            told: Inference | Exception
            try:
                if isinstance(outcome, Exception):
                    told = outcome if isinstance(outcome, ServingError) else _explain(outcome, slot)
                else:
                    told = _inference(slot, request, wanted, outcome, question.rows)
            except Exception as error:  # noqa: BLE001 - others of the batch are still to be told of theirs
                told = error
            tell(told)

        batcher = self.models.get(slot.model).batcher
        return functools.partial(batcher.drop, batcher.ask(slot, question, settled, timeout_s(request)))


def _inference(
    slot: Slot, request: InferRequest, wanted: Sequence[tuple[int, bool]], answer: Answer, rows: int
) -> Inference:
    tensors, provoker = _tensors(answer, slot), None
    if not all(map(is_finite, tensors)):
        provoker = next((tensor for tensor in request.inputs if not fits_half(tensor)), None)
        slot.stats.non_finite += 1
        slot.stats.provoked += provoker is not None
    wire = InferResponse(
        model_name=slot.model,
        model_version=slot.version,
        id=request.id,
        parameters={"method": slot.network.method, "release": slot.release},
        outputs=tuple((tensors[index], is_binary) for index, is_binary in wanted),
        provoker=provoker,
    )
    return Inference(wire, rows, answer.timing)


def _tensors(answer: Answer, slot: Slot) -> list[Tensor]:
    return [
        Tensor(spec.name, spec.datatype, data) for spec, data in zip(slot.network.outputs, answer.outputs, strict=True)
    ]


def _explain(error: Exception, slot: Slot) -> ServingError:
    # What modules raise about values, not shapes: an index that an embedding does not have, a length beyond the input.
    if isinstance(error, (IndexError, ValueError)):
        return BadRequestError(f"the model refuses these values: {error}")
    if is_out_of_memory(error):
        return UnavailableError("the device has not enough free memory for this request: send fewer rows")
    log.error("model_failed", model=slot.model, release=slot.release, error=f"{type(error).__name__}: {error}"[:2000])
    return ModelFailedError(f"the model failed: {type(error).__name__}")


def server_metadata(extra: tuple[str, ...] = ()) -> JsonObject:
    """Return the server metadata object."""
    return {"name": NAME, "version": __version__, "extensions": [*EXTENSIONS, *extra]}


def model_metadata(slot: Slot) -> JsonObject:
    """Return the model metadata object of the release that answers."""
    return {
        "name": slot.model,
        "versions": [slot.version],
        "platform": PLATFORM,
        "inputs": [spec.to_json() for spec in slot.network.inputs],
        "outputs": [spec.to_json() for spec in slot.network.outputs],
        "properties": {
            "model_type": slot.network.model_type,
            "method": slot.network.method,
            "release": slot.release,
            "resident_bytes": str(slot.network.resident_bytes),
            "unpacked_bytes": str(slot.network.unpacked_bytes),
            # The protocol's tensors have a shape and no bounds; its properties are texts.
            **{
                f"max_{dimension.name}": str(dimension.maximum)
                for spec in slot.network.inputs
                for dimension in spec.dimensions
                if dimension.maximum is not None
            },
        },
    }


def model_config(slot: Slot) -> JsonObject:
    """Return the model configuration in the form that Triton's tools read.

    ``max_batch_size`` above 0 means that ``dims`` leave the batch dimension out.
    """
    is_batchable = slot.network.is_batchable

    def entry(spec: TensorSpec) -> JsonObject:
        dims = spec.shape[1:] if is_batchable else spec.shape
        return {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": list(dims)}

    return {
        "name": slot.model,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": slot.max_rows if is_batchable else 0,
        "input": [entry(spec) for spec in slot.network.inputs],
        "output": [entry(spec) for spec in slot.network.outputs],
    }


def model_statistics(slot: Slot) -> JsonObject:
    """Return one entry of ``model_stats``; durations in nanoseconds, as in Triton's statistics extension."""
    stats = slot.stats
    count = stats.outcomes["ok"]
    failed = sum(stats.outcomes.values()) - count

    def duration(count: int, seconds: float) -> JsonObject:
        return {"count": count, "ns": round(seconds * 1e9)}

    return {
        "name": slot.model,
        "version": slot.version,
        "last_inference": stats.last_inference_ms,
        "inference_count": stats.inferences,
        "execution_count": stats.executions,
        "inference_stats": {
            "success": duration(count, stats.request.total),
            "fail": duration(failed, stats.failed_s),
            "queue": duration(count, stats.queue.total),
            "compute_input": duration(count, stats.input_s),
            "compute_infer": duration(count, stats.infer_s),
            "compute_output": duration(count, stats.output_s),
            "cache_hit": duration(0, 0.0),
            "cache_miss": duration(0, 0.0),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": duration(alike.count, alike.input_s),
                "compute_infer": duration(alike.count, alike.infer_s),
                "compute_output": duration(alike.count, alike.output_s),
            }
            for rows, alike in sorted(stats.passes.items())
        ],
    }
