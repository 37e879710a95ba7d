"""A gate file's inputs through a loaded release, on the device and through the queue that requests take.

A gate file is a safetensors file: the model's inputs by name (a single one may be called ``inputs``), ``expected``,
what the source precision answered, and optionally ``labels``. ``expected`` is its top-1 classes, ``(rows,) int64``, or
its embeddings, ``(rows, width)`` floats, of which no label is read. This file measures and does not judge.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from agent.quantization import neighbours
from agent.serving.errors import BadRequestError, ModelFailedError
from agent.serving.stats import percentiles_ms
from agent.serving.tensors import DATATYPES, Tensor, is_finite
from agent.serving.validation import Question, check_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from agent.serving.batcher import Answer
    from agent.serving.slots import Model, Network, Slot
    from agent.serving.tensors import Array, TensorSpec

# Few rows at a time: requests of clients take turns with the canary.
CHUNK_ROWS = 8
TIMED_CALLS = 64


async def measure(model: Model, slot: Slot, gate: Path) -> dict[str, Any]:
    """Return ``rows``, ``answer``, ``agreement``, ``accuracy``, ``non_finite`` rows and ``latency_ms``.

    ``answer`` is what was compared, ``classes`` or ``embedding``; see ``neighbours`` for the latter's agreement, None
    for too few rows. Accuracy is None without labels and for embeddings.
    Latencies are those of up to ``TIMED_CALLS`` calls of one row, without the time in the queue.

    Raises:
        BadRequestError: the gate file cannot be read, or does not fit the model.
        ModelFailedError: the model raised.
    """
    data = await asyncio.to_thread(_read, gate)
    question = check_inputs(_inputs(data, slot.network, gate), slot.network.inputs)
    expected = _expected(data, slot.network, question.rows, gate)
    is_embedding = expected.ndim > 1
    labels = _classes(data, "labels", question.rows, gate) if "labels" in data and not is_embedding else None
    spec = slot.network.outputs[0]
    scores = await _scores(model, slot, question)
    latencies = [
        (await _ask(model, slot, _rows(question, slot.network, row, row + 1))).timing.compute_s
        for row in range(min(question.rows, TIMED_CALLS))
    ]
    finite = np.array([is_finite(Tensor(spec.name, spec.datatype, row)) for row in scores])
    scores = scores.reshape(question.rows, -1)
    answers = np.where(finite, np.argmax(scores, axis=-1), -1)
    if is_embedding:
        agreement = await asyncio.to_thread(neighbours.agreement, expected, scores)
    else:
        agreement = float(np.mean(answers == expected))
    return {
        "rows": question.rows,
        "answer": "embedding" if is_embedding else "classes",
        "agreement": agreement,
        "accuracy": None if labels is None else float(np.mean(answers == labels)),
        "non_finite": int((~finite).sum()),
        "latency_ms": percentiles_ms(latencies, (50, 99)),
    }


async def _scores(model: Model, slot: Slot, question: Question) -> Array:
    """Return the first output for all rows; a model whose rows influence each other answers them one by one."""
    step = CHUNK_ROWS if slot.network.is_batchable else 1
    answers = [
        await _ask(model, slot, _rows(question, slot.network, at, min(at + step, question.rows)))
        for at in range(0, question.rows, step)
    ]
    return np.concatenate([answer.outputs[0] for answer in answers])


async def _ask(model: Model, slot: Slot, question: Question) -> Answer:
    try:
        return await model.batcher.submit(slot, question, is_probe=True)
    except Exception as error:
        raise ModelFailedError(f"the model failed on the gate's inputs: {type(error).__name__}: {error}") from error


def _rows(question: Question, network: Network, start: int, end: int) -> Question:
    arrays = tuple(
        array[start:end] if spec.shape and spec.shape[0] == -1 else array
        for array, spec in zip(question.arrays, network.inputs, strict=True)
    )
    return Question(arrays, end - start)


def _read(gate: Path) -> dict[str, Array]:
    try:
        return load_file(gate)
    except (OSError, SafetensorError, KeyError) as error:
        raise BadRequestError(f"the gate file {gate} cannot be read: {type(error).__name__}: {error}") from None


def _inputs(data: dict[str, Array], network: Network, gate: Path) -> list[Tensor]:
    if len(network.inputs) == 1 and "inputs" in data:
        return [_tensor(network.inputs[0], data["inputs"])]
    missing = [spec.name for spec in network.inputs if spec.name not in data]
    if missing:
        raise BadRequestError(f"the gate file {gate} lacks {', '.join(missing)}; it has {', '.join(sorted(data))}")
    return [_tensor(spec, data[spec.name]) for spec in network.inputs]


def _tensor(spec: TensorSpec, data: Array) -> Tensor:
    # Evaluation data may be stored in another float or integer width than the model takes.
    return Tensor(spec.name, spec.datatype, data.astype(DATATYPES[spec.datatype], copy=False))


def _expected(data: dict[str, Array], network: Network, rows: int, gate: Path) -> Array:
    """Return the source's vectors if the file has such, else its classes."""
    expected = data.get("expected")
    if expected is None or expected.ndim != 2 or expected.dtype.kind != "f":  # noqa: PLR2004 - rows and width
        return _classes(data, "expected", rows, gate)
    width = network.outputs[0].shape[-1]
    if len(expected) != rows or width not in (-1, expected.shape[1]):
        found, needed = list(expected.shape), [rows, width]
        raise BadRequestError(f"the gate file {gate} has {found} as 'expected', vectors of shape {needed} are needed")
    return expected


def _classes(data: dict[str, Array], key: str, rows: int, gate: Path) -> Array:
    if key not in data or data[key].shape != (rows,):
        found = list(data[key].shape) if key in data else "nothing"
        raise BadRequestError(f"the gate file {gate} has {found} as {key!r}, {rows} classes are needed")
    return data[key]
