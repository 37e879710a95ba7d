"""The training loop: augmented images in, weights out.

Rules: the number of epochs is fixed beforehand and the last weights are the result, so nothing about the evaluation
data can choose among them. Randomness comes from the recipe's seed alone. It knows no font and writes no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from deploy.demo.augment import augment

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Recipe:
    """The settings that, with the images, determine the weights.

    `weight_decay` acts on matrices and kernels only; it also keeps their values close together, which 4-bit
    quantization by blocks rewards. The learning rate follows one cycle (Smith and Topin, arXiv 1708.07120).
    """

    epochs: int = 40
    batch: int = 128
    peak_learning_rate: float = 4e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    seed: int = 20


@dataclass(frozen=True)
class Score:
    """Mean cross entropy, and the share of right answers in 0..1."""

    loss: float
    accuracy: float


def train(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    on_epoch: Callable[[int, Score], None],
) -> Score:
    """Train in place and return the last epoch's score on its augmented images.

    Args:
        model: takes `(B, 1, 64, 64)` float32.
        images: `(N, 1, 64, 64)` uint8; every epoch shows each once, freshly augmented.
        labels: `(N,)` int64.
        recipe: the settings.
        on_epoch: told the epoch, from 0, and its score.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = _optimizer(model, recipe)
    steps = recipe.epochs * -(-len(images) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_learning_rate, total_steps=steps)
    score = Score(float("inf"), 0.0)
    model.train()
    for epoch in range(recipe.epochs):
        losses, hits = 0.0, 0
        for rows in torch.split(torch.randperm(len(images), generator=generator), recipe.batch):
            answers = model(augment(images[rows].float() / 255, generator))
            loss = functional.cross_entropy(answers, labels[rows], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses += loss.item() * len(rows)
            hits += int((answers.argmax(dim=1) == labels[rows]).sum())
        score = Score(losses / len(images), hits / len(images))
        on_epoch(epoch, score)
    return score


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    offsets = [parameter for parameter in parameters if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": offsets, "weight_decay": 0.0}],
        lr=recipe.peak_learning_rate,
    )


@torch.inference_mode()
def evaluate(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Score:
    """Score the model, in eval mode and float32, on `(N, 1, 64, 64)` inputs in [0, 1] of any float type."""
    model.eval()
    answers = model(inputs.float())
    loss = functional.cross_entropy(answers, labels).item()
    return Score(loss, (answers.argmax(dim=1) == labels).float().mean().item())
