"""Weights that stay unpacked in memory, for speed, while the artifact stays what it is.

A packed layer unpacks its weight at every call. One that is kept does so once; what it computes with is the same
tensor, so answers differ by no more than the order of a sum. The codes stay too, so that the way back costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.quantization.layers import compute_dtype
from agent.quantization.packed import PackedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def unpacked_bytes(module: nn.Module) -> int:
    """Return what keeping every packed weight of ``module`` unpacked takes beside its codes."""
    return sum(weight.numel * compute_dtype(weight.device).itemsize for weight in _weights(module))


def keep(module: nn.Module) -> None:
    """Unpack every packed weight, in the dtype that its device computes in, and keep it."""
    for weight in _weights(module):
        weight.keep(compute_dtype(weight.device))


def drop(module: nn.Module) -> None:
    """Let go of what was kept."""
    for weight in _weights(module):
        weight.drop()


def _weights(module: nn.Module) -> Iterator[PackedTensor]:
    return (each for each in module.modules() if isinstance(each, PackedTensor))
