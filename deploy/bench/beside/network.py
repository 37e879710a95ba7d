"""The module that every server here answers with: FP32 ``[N, 3, 32, 32]`` to FP32 ``[N, 10]``, one thread."""

from __future__ import annotations

import torch
from torch import nn

SHAPE = (3, 32, 32)
CLASSES = 10


def build(seed: int = 0) -> nn.Sequential:
    """Return the module in eval mode, with the same weights at every call with the same seed."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    return layers(CLASSES).eval()


def layers(classes: int) -> nn.Sequential:
    """Return the layers alone; also under ``torch.device("meta")``."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
