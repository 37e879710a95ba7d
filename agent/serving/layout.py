"""Images with their channels last: the same tensors in another order of memory, in which pooling has no branches.

torch's kernels for max pooling take one element after the other where rows are contiguous, and guess wrong at each new
maximum of a real picture; where channels are last they take a vector of them at a time. Convolutions take both orders
and hand on the one that came. Only inputs are laid out anew: weights stay where they are. Imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.serving.network import TorchNetwork
    from agent.serving.tensors import TensorSpec

    Call = Callable[..., Any]

IMAGES = 4
"""Dimensions of a batch of images: rows, channels, height, width."""


def has_images(specs: Sequence[TensorSpec]) -> bool:
    """Return whether any input may be a batch of images."""
    return any(len(spec.shape) == IMAGES for spec in specs)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of four dimensions, and of the same values, whose strides say that channels come last."""
    laid_out = tensor.contiguous(memory_format=torch.channels_last)
    _rows, channels, height, width = tensor.shape
    if channels > 1:
        return laid_out
    # With one channel both orders are the same memory, and torch reads the strides: these say which one is meant.
    return laid_out.as_strided(tensor.shape, (height * width, 1, width, 1))


class ChannelsLast:
    """A model that is given its images with their channels last."""

    def __init__(self, own: Call) -> None:
        self._own = own

    def __call__(self, *given: torch.Tensor) -> Any:
        """Compute."""
        return self._own(*[channels_last(tensor) if tensor.dim() == IMAGES else tensor for tensor in given])


class LayoutWay:
    """Images with their channels last, as a way to call a model; see ``acceleration``."""

    name = "layout"

    def __init__(self, network: TorchNetwork) -> None:
        self._network = network
        self._own = network.call

    def begin(self) -> None:
        """Nothing has to be made ready."""

    def change(self) -> None:
        """Lay images out anew from now on."""
        self._network.change(ChannelsLast(self._own))

    def end(self) -> None:
        """Hand images over as they come."""
        self._network.change(self._own)
