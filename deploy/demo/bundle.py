"""Writes what training made: checkpoint, evaluation set, class names and a README, together under 8 MB.

Rules: the checkpoint has the layout that kanji-CNN training runs write (five keys, metrics in percent), with no
optimizer state, which would triple it; it opens with `weights_only=True`. The evaluation set holds held-out fonts only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from deploy.demo import fonts, readme
from deploy.demo.characters import CLASSES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from deploy.demo.learning import Recipe, Score

LARGEST_BYTES = 8_000_000
"""The folder travels in the wheel and in the source tree."""


class BundleTooLargeError(ValueError):
    """The files together pass `LARGEST_BYTES`."""


@dataclass(frozen=True)
class Evaluation:
    """Held-out inputs `(N, 1, 64, 64)` float16 in [0, 1] with labels `(N,)` int64; row r shows font r modulo F."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def of_font(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that one held-out font drew."""
        step = len(fonts.HELD_OUT)
        return self.inputs[index::step], self.labels[index::step]


@dataclass(frozen=True)
class Result:
    """What training reached; `by_font` follows `fonts.HELD_OUT` and `further` follows `fonts.FURTHER`."""

    recipe: Recipe
    training: Score
    overall: Score
    by_font: tuple[Score, ...]
    further: tuple[Score, ...]


def lay_out(held_out: torch.Tensor, seed: int) -> Evaluation:
    """Shuffle the classes and interleave the fonts, so that any leading part is a fair sample.

    Args:
        held_out: `(F, C, 1, 64, 64)` uint8.
        seed: of the shuffle.
    """
    order = torch.randperm(held_out.shape[1], generator=torch.Generator().manual_seed(seed))
    rows = held_out[:, order].transpose(0, 1).flatten(0, 1)
    return Evaluation((rows.float() / 255).half().contiguous(), order.repeat_interleave(len(held_out)))


def write(
    folder: Path,
    model: nn.Module,
    evaluation: Evaluation,
    result: Result,
    nearest: readme.Nearest,
) -> int:
    """Write the four files and return their bytes.

    Raises:
        BundleTooLargeError: they pass `LARGEST_BYTES`; the files are left for inspection.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(_checkpoint(model, result), folder / "checkpoint_best.pt")
    tensors = {"inputs": evaluation.inputs, "labels": evaluation.labels}
    save_file(tensors, folder / "evaluation.safetensors", metadata=_metadata())
    (folder / "evaluation.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    (folder / "classes.json").write_text(_classes(), encoding="utf-8")
    (folder / "README.md").write_text(readme.text(result, nearest), encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if sum(sizes.values()) > LARGEST_BYTES:
        raise BundleTooLargeError(f"{sizes} pass {LARGEST_BYTES:,} bytes: take fewer characters or held-out fonts")
    return sum(sizes.values())


def _checkpoint(model: nn.Module, result: Result) -> dict[str, object]:
    return {
        "epoch": result.recipe.epochs - 1,
        "classes": list(CLASSES),
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": {},
        "scheduler_state_dict": None,
        "metrics": {
            "train_loss": result.training.loss,
            "train_acc": 100 * result.training.accuracy,
            "val_loss": result.overall.loss,
            "val_acc": 100 * result.overall.accuracy,
        },
    }


def _metadata() -> dict[str, str]:
    return {
        "fonts": json.dumps([font.name for font in fonts.HELD_OUT]),
        "licences": json.dumps([font.licence for font in fonts.HELD_OUT]),
        "rows": f"row r is drawn with fonts[r % {len(fonts.HELD_OUT)}]; no font of this set was trained on",
        "inputs": "grey images in [0, 1], bright strokes on dark, not normalised",
        "labels": "index into the list `classes` of classes.json",
    }


def _classes() -> str:
    content = {
        "model_type": "cnn",
        "classes": CLASSES,
        "source": "kanji of the first and the beginning of the second school year in Japan, in the official order",
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
