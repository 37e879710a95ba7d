"""Trains an `rnn` and a `vit` on the demo's rendered kanji, so that accuracy can be measured on more than the `cnn`.

    python -m deploy.bench.train_kanji rnn
    python -m deploy.bench.train_kanji vit

Rules: characters, training fonts, held-out fonts, augmentation and loop are the demo's; only the model differs. The
recipes fit eight minutes on two CPU cores, so these models are sound, not the best of their kind: what is measured on
them is the distance between methods, not a record. Files go to a folder that git ignores; nothing is published.

It needs the Debian packages of `deploy.demo.fonts` and says which are absent.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from safetensors.torch import save_file
from torch import nn

from agent.architectures import build, preprocess
from deploy.demo import bundle, fonts
from deploy.demo.characters import CLASSES
from deploy.demo.learning import Recipe, Score, evaluate, train
from deploy.demo.render import render_font

if TYPE_CHECKING:
    from collections.abc import Mapping

OUTPUT = Path(__file__).parent / "out"
GRID = 8
"""Cells along a side of the image."""


@dataclass(frozen=True)
class Plan:
    """What is trained: the options of the type and the recipe that its size allows in eight minutes."""

    recipe: Recipe
    options: Mapping[str, Any] = field(default_factory=dict)


PLANS: dict[str, Plan] = {
    # A step is a row of the grid, eight cells of four statistics: cell by cell, in 64 steps of four, the type learns
    # too little in that time to tell methods apart.
    "rnn": Plan(
        Recipe(epochs=50, batch=64, peak_learning_rate=4e-3, weight_decay=0.01),
        {"input_size": 32, "hidden_size": 128, "num_layers": 2},
    ),
    # The small form that its trainer starts from.
    "vit": Plan(
        Recipe(epochs=40, batch=64, peak_learning_rate=2.5e-3, weight_decay=0.02),
        {
            "embedding_dim": 64,
            "num_heads": 2,
            "num_transformer_layers": 2,
            "mlp_dim": 256,
            "use_tokens_to_tokens": False,
        },
    ),
}


class CellFeatures(nn.Module):
    """Images `(B, 1, 64, 64)` to the `(B, 8, 32)` cell statistics that the `rnn` reads."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the statistics; nothing flows back through them."""
        return cell_features(images)


def cell_features(images: torch.Tensor) -> torch.Tensor:
    """Return `(B, 8, 32)` float32, a row of the grid a step, for `(B, 1, 64, 64)` float32 images in [0, 1]."""
    return torch.from_numpy(preprocess.cell_statistics(images.squeeze(1).numpy())).reshape(len(images), GRID, -1)


def prepare(model_type: str, network: nn.Module) -> nn.Module:
    """Set the starts that short trainings need, and return what takes images: the network, after features for `rnn`.

    A forget gate that starts open carries the first cells to the last step (Jozefowicz et al., ICML 2015, section 4);
    positions that start different are told apart sooner than zeros.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("rnn.bias_ih"):
                hidden = len(parameter) // 4
                parameter[hidden : 2 * hidden] = 1.0
            elif name in {"pos_embed", "class_token"}:
                parameter.normal_(std=0.02)
    return nn.Sequential(CellFeatures(), network) if model_type == "rnn" else network


def write(
    folder: Path,
    model_type: str,
    network: nn.Module,
    score: Score,
    held_out: bundle.Evaluation,
    *,
    is_half: bool = False,
) -> Path:
    """Write `<type>.pt` and `<type>.safetensors` (inputs and labels of the held-out fonts); return the checkpoint.

    Weights and cell statistics are float32, or float16 if ``is_half``.
    """
    if is_half:
        network = copy.deepcopy(network).half()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", encoding="ascii")
    checkpoint = folder / f"{model_type}.pt"
    content = {
        "epoch": PLANS[model_type].recipe.epochs - 1,
        "model_state_dict": network.state_dict(),
        "val_accuracy": 100 * score.accuracy,
    }
    torch.save(content, checkpoint)
    inputs = cell_features(held_out.inputs.float()) if model_type == "rnn" else held_out.inputs
    inputs = inputs.half() if is_half else inputs
    save_file({"inputs": inputs.contiguous(), "labels": held_out.labels}, folder / f"{model_type}.safetensors")
    return checkpoint


@click.command()
@click.argument("model_type", type=click.Choice(sorted(PLANS)))
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=OUTPUT)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--hidden-size", type=click.IntRange(min=1), help="Of the rnn: another width than the plan's.")
@click.option("--half", "is_half", is_flag=True, help="Write half floats.")
def main(model_type: str, output: Path, threads: int, hidden_size: int | None, is_half: bool) -> None:  # noqa: FBT001 - click passes it by name
    """Train one MODEL_TYPE and write its checkpoint and evaluation data to OUTPUT."""
    try:
        fonts.require_installed()
    except fonts.MissingFontError as error:
        raise click.ClickException(str(error)) from error
    torch.set_num_threads(threads)
    plan = PLANS[model_type]
    torch.manual_seed(plan.recipe.seed)
    drawn, held_out = (
        torch.stack([render_font(face, CLASSES) for face in faces]) for faces in (fonts.TRAINING, fonts.HELD_OUT)
    )
    options = dict(plan.options) if hidden_size is None else {**plan.options, "hidden_size": hidden_size}
    network = build(model_type, len(CLASSES), **options)
    model = prepare(model_type, network)
    labels = torch.arange(len(CLASSES)).repeat(len(drawn))
    begin, processor = time.monotonic(), time.process_time()
    training = train(model, drawn.flatten(0, 1), labels, plan.recipe, _show)
    spent = f"{time.monotonic() - begin:.0f} s ({time.process_time() - processor:.0f} s of the processor)"
    evaluation = bundle.lay_out(held_out, plan.recipe.seed)
    score = evaluate(model, evaluation.inputs, evaluation.labels)
    checkpoint = write(output, model_type, network, score, evaluation, is_half=is_half)
    click.echo(
        f"{checkpoint}: {spent}, augmented training images {training.accuracy:.2%}, "
        f"{len(evaluation.labels)} drawings in fonts never trained on {score.accuracy:.2%}"
    )


def _show(epoch: int, score: Score) -> None:
    click.echo(f"epoch {epoch:03d}  loss {score.loss:.3f}  accuracy {score.accuracy:.2%}", err=True)


if __name__ == "__main__":
    main()
