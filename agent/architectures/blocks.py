"""Layers that several types share. Names and indices inside each Sequential are part of the checkpoint format."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn


def separable_layers(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    """Return a depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU: six layers."""
    return [
        nn.Conv2d(channels_in, channels_in, 3, stride=stride, padding=1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        nn.ReLU(),
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


def head(features: int, hidden: int, num_classes: int, dropout: tuple[float, float] = (0.3, 0.3)) -> nn.Sequential:
    """Return the two-layer classifier; its Dropouts do nothing at inference but take the indices 0 and 3."""
    return nn.Sequential(
        nn.Dropout(dropout[0]),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(dropout[1]),
        nn.Linear(hidden, num_classes),
    )


def unit_noise(*shape: int) -> Tensor:
    """Return uniform noise of mean 0 and variance 1, to initialise a raw parameter or an embedding.

    Uniform on purpose: drawing from a normal distribution on the meta device makes torch import its compiler, which
    costs seconds and tens of megabytes in a process that only wants to know shapes.
    """
    return torch.empty(shape).uniform_(-sqrt(3.0), sqrt(3.0))


def embedding(rows: int, width: int) -> nn.Embedding:
    """Return an embedding, initialised without a normal distribution for the reason given in ``unit_noise``."""
    return nn.Embedding(rows, width, _weight=unit_noise(rows, width))
