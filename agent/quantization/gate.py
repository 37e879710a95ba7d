"""Measuring an artifact against its source on the same inputs. Measures only; thresholds are judged elsewhere.

The two models are never in memory together: the source runs first, straight from the mapped checkpoint, then the
finished artifact is loaded from disk, as the server will, and runs on the same rows in the same chunks. Types whose
answer depends on their batch-mates run row by row, so that the expected answers hold for any batching.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from agent import architectures
from agent.failpoints import around
from agent.quantization import metrics
from agent.quantization.errors import BadCheckpointError, UnsafeCheckpointError
from agent.quantization.safetensors_header import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from agent.architectures import Answer, Recognised, TensorSpec

CHUNK_ROWS = 32
"""Rows that are answered together at most; fewer where their intermediate results would be many (`footprint`)."""
LATENCY_CALLS = 32
WARM_UP_CALLS = 3
MAX_LOGIT_BYTES = 256 << 20
"""Memory for the source's answers; rows are cut down to it for models with very many classes."""
SINGLE = "inputs"
"""What the only input of a model is called in evaluation data and gate files; several go by their own names."""

DTYPES = {
    "FP32": torch.float32,
    "FP16": torch.float16,
    "FP64": torch.float64,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Evaluation:
    """Inputs to compare on.

    Attributes:
        inputs: by the model's input names, in forward's order; rows first.
        labels: ``(rows,) int64``, or None; class numbers, so an embedding's are not read.
        origin: where they come from.
        answer: what the model's rows of logits are.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    origin: Literal["dataset", "synthetic"]
    answer: Answer

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return next(iter(self.inputs.values())).shape[0]


@dataclass(frozen=True)
class Run:
    """What a model answered: ``(rows, classes) float32`` logits or embeddings, and how long single rows took."""

    logits: Tensor
    latency_ms: dict[str, float]


def evaluation(found: Recognised, dataset: Path | None, rows: int, seed: int) -> Evaluation:
    """Return at most ``rows`` rows, the same ones for the same seed.

    Raises:
        BadCheckpointError: the dataset is no safetensors file or does not fit the model's inputs.
    """
    rows = max(1, min(rows, MAX_LOGIT_BYTES // (4 * found.num_classes)))
    answer = architectures.answer_of(found.model_type, found.options)
    if dataset is None:
        inputs = architectures.synthetic_inputs(found.model_type, found.options, rows, seed)
        return Evaluation(inputs, None, "synthetic", answer)
    specs = architectures.input_specs(found.model_type, found.options)
    num_classes = found.num_classes if answer == "classes" else None
    try:
        inputs, labels = _read_dataset(dataset, specs, num_classes, rows, seed)
    except (BadCheckpointError, UnsafeCheckpointError) as error:
        raise type(error)(f"evaluation data: {error.detail}", error.hint) from error
    except OSError as error:
        raise BadCheckpointError(f"evaluation data: {error.strerror or error}") from error
    return Evaluation(inputs, labels, "dataset", answer)


def run(model: nn.Module, inputs: Mapping[str, Tensor], *, chunk_rows: int) -> Run:
    """Run all rows through ``model``, ``chunk_rows`` at a time, then single rows for the time they take."""
    logits = answers(model, inputs, chunk_rows=chunk_rows)
    with torch.inference_mode():
        return Run(logits, _latency(model, list(inputs.values())))


def answers(model: nn.Module, inputs: Mapping[str, Tensor], *, chunk_rows: int) -> Tensor:
    """Return the ``(rows, classes) float32`` logits or embeddings of all rows, ``chunk_rows`` at a time."""
    tensors = list(inputs.values())
    step = chunk_rows
    with torch.inference_mode():
        starts = range(0, len(tensors[0]), step)
        return torch.cat([_logits(model, [t[start : start + step] for t in tensors]) for start in starts])


def sample(data: Evaluation, rows: int, seed: int) -> Evaluation:
    """Return at most ``rows`` rows of ``data``, the same ones for the same seed."""
    chosen = _subset(data.rows, rows, seed)
    inputs = {name: tensor[chosen] for name, tensor in data.inputs.items()}
    return replace(data, inputs=inputs, labels=None if data.labels is None else data.labels[chosen])


def compare(source: Run, packed: Run, data: Evaluation) -> dict[str, Any]:
    """Return the ``gate`` object of the result event."""
    labels, is_embedding = data.labels, data.answer == "embedding"
    agreement = metrics.neighbour_agreement if is_embedding else metrics.agreement
    return {
        "rows": data.rows,
        "inputs": data.origin,
        "answer": data.answer,
        "agreement": agreement(source.logits, packed.logits),
        "cosine": metrics.cosine(source.logits, packed.logits),
        "kl": None if is_embedding else metrics.divergence(source.logits, packed.logits),
        "accuracy_source": None if labels is None else metrics.accuracy(source.logits, labels),
        "accuracy": None if labels is None else metrics.accuracy(packed.logits, labels),
        "non_finite": metrics.non_finite_rows(packed.logits),
        "latency_ms": packed.latency_ms,
        "source_latency_ms": source.latency_ms,
    }


def write_gate_file(path: Path, data: Evaluation, source: Run) -> None:
    """Write what the server needs to repeat the comparison: inputs, what the source answered, labels if known.

    ``expected`` holds the source's top classes, ``(rows,) int64``, or its embeddings, ``(rows, width) float32``.
    """
    is_single = len(data.inputs) == 1
    tensors = {SINGLE if is_single else name: tensor.contiguous() for name, tensor in data.inputs.items()}
    tensors["expected"] = source.logits.contiguous() if data.answer == "embedding" else source.logits.argmax(dim=1)
    if data.labels is not None:
        tensors["labels"] = data.labels
    save_file(tensors, path)
    with path.open("rb") as file, around("gate_file.fsync"):
        os.fsync(file.fileno())


def _read_dataset(
    path: Path, specs: Sequence[TensorSpec], num_classes: int | None, rows: int, seed: int
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return inputs and labels; without a number of classes there are none."""
    header = read_header(path)
    names = {spec.name: _dataset_name(spec, specs, header.tensors) for spec in specs}
    total = {header.tensors[name].shape[:1] for name in names.values()}
    if len(total) != 1 or total in ({()}, {(0,)}):
        raise BadCheckpointError(f"the inputs {', '.join(names.values())} have no common number of rows")
    ((count,),) = total
    chosen = _subset(count, rows, seed)
    with safe_open(path, framework="pt") as file:
        inputs = {spec.name: _fit(file.get_tensor(names[spec.name])[chosen], spec) for spec in specs}
        _check_dimensions(inputs, specs)
        if num_classes is None or "labels" not in header.tensors:
            return inputs, None
        return inputs, _labels(file.get_tensor("labels"), count, num_classes)[chosen]


def _dataset_name(spec: TensorSpec, specs: Sequence[TensorSpec], held: Mapping[str, Any]) -> str:
    candidates = (spec.name, SINGLE) if len(specs) == 1 else (spec.name,)
    for name in candidates:
        if name in held:
            return name
    wanted = " or ".join(repr(name) for name in candidates)
    raise BadCheckpointError(f"there is no tensor {wanted}; the file holds {', '.join(list(held)[:8]) or 'none'}")


def _subset(count: int, rows: int, seed: int) -> Tensor:
    if count <= rows:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:rows].sort().values


def _fit(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Cast to the model's dtype; the shape must be the model's."""
    fits = len(tensor.shape) == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise BadCheckpointError(f"{spec.name!r} has shape {list(tensor.shape)}, the model takes {list(spec.shape)}")
    wanted = DTYPES[spec.datatype]
    if tensor.is_floating_point() != wanted.is_floating_point:
        raise BadCheckpointError(f"{spec.name!r} is {tensor.dtype}, the model takes {spec.datatype}")
    return tensor.to(wanted)


def _check_dimensions(inputs: Mapping[str, Tensor], specs: Sequence[TensorSpec]) -> None:
    sizes: dict[str, int] = {}
    for spec in specs:
        for axis, name, most in ((each.axis, each.name, each.maximum) for each in spec.dimensions):
            size = inputs[spec.name].shape[axis]
            if most is not None and size > most:
                raise BadCheckpointError(f"{spec.name!r} has {name} {size}, the model takes at most {most}")
            if size != sizes.setdefault(name, size):
                raise BadCheckpointError(f"{spec.name!r} has {name} {size}, the inputs before it {sizes[name]}")


def _labels(labels: Tensor, count: int, num_classes: int) -> Tensor:
    if labels.shape != (count,) or labels.is_floating_point():
        raise BadCheckpointError(
            f"labels are {labels.dtype} of shape {list(labels.shape)}, expected ({count},) integers"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise BadCheckpointError(f"labels lie in {low} to {high}, the model has {num_classes} classes")
    return labels.long()


def answer(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what ``model`` answers, ``(rows, classes) float32`` on the CPU, for all rows in one batch."""
    with torch.inference_mode():
        return _logits(model, list(inputs.values()))


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's tensors are."""
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


def _logits(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    device = device_of(model)
    return architectures.logits_of(model(*(tensor.to(device) for tensor in inputs))).float().cpu()


def _latency(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, float]:
    """Time single rows, results included: the copy back waits for a GPU."""
    rows = inputs[0].shape[0]
    times = []
    for call in range(WARM_UP_CALLS + LATENCY_CALLS):
        row = [tensor[call % rows : call % rows + 1] for tensor in inputs]
        begin = time.perf_counter()
        _logits(model, row)
        times.append((time.perf_counter() - begin) * 1e3)
    return metrics.percentiles(times[WARM_UP_CALLS:])
