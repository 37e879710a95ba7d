"""How much the answers change when one weight of the source model is rounded, all others left as they are.

The rounded weight takes the place of the source's for one run over a few rows and goes again; the others stay in the
mapped checkpoint, so that no more floats are in memory than those of the weights under test.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from agent.planning.mix import INT8, Part
from agent.quantization import gate, metrics, modules, packed
from agent.quantization.packed import PackedTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from agent.architectures import Answer
    from agent.planning.methods import Method

MAX_ROWS, MAX_ROWS_ALONE = 128, 32
"""Rows of a run, and of one in which every row runs alone."""
SEED = 0
_LARGEST_HALF = torch.finfo(torch.float16).max


def measure(
    model: nn.Module,
    data: gate.Evaluation,
    groups: Sequence[tuple[str, ...]],
    base: Method,
    blocksize: int,
    *,
    chunk_rows: int,
    ran: Callable[[], None],
) -> list[Part]:
    """Return each group's loss under ``base`` and under int8; ``model`` is as it was afterwards.

    Args:
        model: the source model; its weights are not written to.
        data: the rows to run, all of them.
        groups: names of weights that are rounded together.
        base: the 4-bit method.
        blocksize: weights that share a scale.
        chunk_rows: how many rows are answered together.
        ran: called after each run.
    """
    source = gate.answers(model, data.inputs, chunk_rows=chunk_rows)
    held = _weights(model, {name for names in groups for name in names})
    parts = []
    for names in groups:
        losses: dict[str, float | None] = {}
        for method in (base, INT8):
            with rounded(model, names, method, blocksize):
                other = gate.answers(model, data.inputs, chunk_rows=chunk_rows)
            losses[method.name] = loss(source, other, data.answer)
            ran()
        numels = {name: held[name].numel() for name in names}
        fits_half = all(_fits_half(held[name]) for name in names)
        parts.append(Part(numels, losses[base.name], losses[INT8.name], fits_half))
    return parts


def sample(data: gate.Evaluation, *, is_batchable: bool) -> gate.Evaluation:
    """Return the rows that sensitivity is measured on: few, and from all over the data."""
    return gate.sample(data, MAX_ROWS if is_batchable else MAX_ROWS_ALONE, SEED)


@contextlib.contextmanager
def rounded(model: nn.Module, names: Sequence[str], method: Method, blocksize: int) -> Iterator[None]:
    """Put the named weights, rounded by ``method``, in place of the model's own; on leaving these are back.

    New parameters are registered, nothing is written into the old ones: they may be pages of the checkpoint, and
    ``nn.LSTM`` notices other parameters but not other contents of its flat copies.
    """
    tied = {name: every for every in modules.slots(model).values() for name in every}
    weights = _weights(model, names)
    try:
        for name, weight in weights.items():
            modules.assign(model, tied[name], _rounded(weight, method, blocksize))
        yield
    finally:
        for name, weight in weights.items():
            modules.assign(model, tied[name], weight)


def loss(source: Tensor, other: Tensor, answer: Answer) -> float | None:
    """Return how far answers diverge: KL of classes in nats, 1 - cosine of embeddings; None if some are not finite."""
    if metrics.non_finite_rows(other) > metrics.non_finite_rows(source):
        return None
    if answer == "classes":
        return metrics.divergence(source, other)
    cosine = metrics.cosine(source, other)
    return None if cosine is None else max(0.0, 1.0 - cosine)


def _weights(model: nn.Module, names: Sequence[str] | set[str]) -> dict[str, Tensor]:
    tensors = model.state_dict()
    return {name: tensors[name] for name in names}


def _rounded(weight: Tensor, method: Method, blocksize: int) -> Tensor:
    holder = PackedTensor(tuple(weight.shape), method, blocksize)
    for part, value in packed.pack(weight, method, blocksize).items():
        holder.register_buffer(part, value)
    return holder.unpack()


def _fits_half(weight: Tensor) -> bool:
    low, high = torch.aminmax(weight)
    return max(-float(low), float(high)) <= _LARGEST_HALF
