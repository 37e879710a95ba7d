"""Trains the demo's model on rendered kanji and writes the folder the demo runs on.

    python -m deploy.demo.train --output deploy/demo/kanji

Needs the extras `model` and `dev` (torch, Pillow, fonttools) and the Debian packages of `deploy.demo.fonts`; when any
is absent it says which `apt-get install` brings them. Two CPU cores take about ten minutes. The same versions, thread
count and processor kind give the same weights. Fonts that are not trained on are scored once, after the last epoch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agent.architectures import build
from deploy.demo import bundle, fonts
from deploy.demo.characters import CLASSES
from deploy.demo.learning import Recipe, Score, evaluate, train
from deploy.demo.readme import Nearest
from deploy.demo.render import render_font
from deploy.demo.similarity import closest, most_alike_pair

if TYPE_CHECKING:
    from torch import nn

DEFAULTS = Recipe()


def _render(faces: tuple[fonts.Font, ...], console: Console) -> torch.Tensor:
    """Draw all classes with every face: `(len(faces), len(CLASSES), 1, 64, 64)` uint8."""
    with console.status(f"drawing {len(CLASSES)} kanji in {len(faces)} fonts"):
        return torch.stack([render_font(face, CLASSES) for face in faces])


def _learn(model: nn.Module, drawn: torch.Tensor, recipe: Recipe, console: Console) -> Score:
    """Train behind a progress bar."""
    labels = torch.arange(len(CLASSES)).repeat(len(drawn))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("training", total=recipe.epochs)

        def show(epoch: int, score: Score) -> None:
            progress.update(bar, advance=1)
            progress.console.print(f"epoch {epoch:03d}  loss {score.loss:.3f}  accuracy {score.accuracy:.2%}")

        return train(model, drawn.flatten(0, 1), labels, recipe, show)


@click.command()
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("deploy/demo/kanji"))
@click.option("--epochs", type=click.IntRange(min=1), default=DEFAULTS.epochs, show_default=True)
@click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def main(output: Path, epochs: int, seed: int, threads: int) -> None:
    """Train the demo's kanji model and write it, its evaluation set and its README to OUTPUT."""
    console = Console()
    try:
        fonts.require_installed()
    except fonts.MissingFontError as error:
        raise click.ClickException(str(error)) from error
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    recipe = Recipe(epochs=epochs, seed=seed)
    drawn, held_out, further = (_render(faces, console) for faces in (fonts.TRAINING, fonts.HELD_OUT, fonts.FURTHER))
    model = build("cnn", len(CLASSES))
    training = _learn(model, drawn, recipe, console)
    evaluation = bundle.lay_out(held_out, seed)
    result = bundle.Result(
        recipe=recipe,
        training=training,
        overall=evaluate(model, evaluation.inputs, evaluation.labels),
        by_font=tuple(evaluate(model, *evaluation.of_font(index)) for index in range(len(held_out))),
        further=tuple(evaluate(model, images / 255, torch.arange(len(CLASSES))) for images in further),
    )
    unseen = torch.cat([held_out, further])
    written = bundle.write(output, model, evaluation, result, Nearest(closest(unseen, drawn), most_alike_pair(drawn)))
    for face, score in zip(fonts.HELD_OUT + fonts.FURTHER, result.by_font + result.further, strict=True):
        console.print(f"never trained on: {face.name} {score.accuracy:.2%}")
    console.print(f"{output}: {written:,} bytes")


if __name__ == "__main__":
    main()
