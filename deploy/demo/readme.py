"""Writes the README of the demo's folder from what was measured; no figure in it is typed by hand."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.demo import fonts
from deploy.demo.characters import CLASSES, FIRST_YEAR

if TYPE_CHECKING:
    from deploy.demo.bundle import Result

_TEXT = """\
# The demo's model and its real input

A `cnn` (depthwise-separable blocks with channel attention) that reads {classes} kanji: the {first} of the first school
year in Japan and the first {second} of the second, all of them jōyō kanji. Input: `(batch, 1, 64, 64)` float32 in
[0, 1], bright strokes on dark. Output: `(batch, {classes})` logits.

| file | what it is |
|---|---|
| `checkpoint_best.pt` | the checkpoint as training writes it, without optimizer state; opens with `weights_only=True` |
| `evaluation.safetensors` | {rows} `inputs` (float16) with `labels` (int64), drawn with the held-out fonts only |
| `classes.json` | the character of each label, in order |

## Accuracy on fonts that training never saw

{scores}

In float32, on clean drawings. The evaluation file together: {overall:.2%}; the augmented training images of the last
epoch: {training:.2%}. The number of epochs is fixed and the last weights are kept, so no checkpoint was chosen by these
figures; the recipe, though, was settled on trial runs that showed the two fonts of the evaluation file, so their
accuracy leans to the bright side. Where it is near 100 % it tells a broken model from a sound one and says little
between two sound ones: compare their answers and margins too. The last row, a running brush hand, shows where reading
gets hard. Free handwriting by many people was not tried.

"Closest training font" is the highest mean pixel correlation over all classes: how far the held-out designs stand from
everything trained on. For contrast, the two most alike training fonts, {pair}.

## Made by

    apt-get install {packages}
    python -m deploy.demo.train --output deploy/demo/kanji --epochs {epochs} --seed {seed}

on the CPU, from {images:,} drawings ({training_fonts} fonts x {classes} kanji): {epochs} passes over all of them, with
fresh stroke width, size, place, turn, shear, bend, blur, contrast and noise each time.

## Fonts and their licences

The pictures in `evaluation.safetensors` are drawings made with the held-out fonts; no font file is part of this folder.
Licences are those that the Debian packages state.

| used for | font | licence | Debian package |
|---|---|---|---|
{table}
"""


@dataclass(frozen=True)
class Nearest:
    """How far fonts stand from the training fonts.

    `by_font` follows `fonts.HELD_OUT + fonts.FURTHER`: correlation with the closest training font, and its index.
    `pair` is the correlation of the two most alike training fonts, and both indices.
    """

    by_font: tuple[tuple[float, int], ...]
    pair: tuple[float, int, int]


def text(result: Result, nearest: Nearest) -> str:
    """Return the README as Markdown."""
    packages = textwrap.wrap(" ".join(fonts.packages()), width=100, break_on_hyphens=False)
    return _TEXT.format(
        classes=len(CLASSES),
        first=len(FIRST_YEAR),
        second=len(CLASSES) - len(FIRST_YEAR),
        rows=len(fonts.HELD_OUT) * len(CLASSES),
        scores="\n".join(_scores(result, nearest)),
        overall=result.overall.accuracy,
        training=result.training.accuracy,
        pair=_pair(nearest),
        packages=" \\\n        ".join(packages),
        epochs=result.recipe.epochs,
        seed=result.recipe.seed,
        images=len(fonts.TRAINING) * len(CLASSES),
        training_fonts=len(fonts.TRAINING),
        table="\n".join(_licences()),
    )


def _scores(result: Result, nearest: Nearest) -> list[str]:
    lines = ["| font | right | accuracy | in the file | closest training font |", "|---|---|---|---|---|"]
    scores = result.by_font + result.further
    for font, score, (alike, index) in zip(fonts.HELD_OUT + fonts.FURTHER, scores, nearest.by_font, strict=True):
        right = f"{round(score.accuracy * len(CLASSES))} of {len(CLASSES)}"
        place = "yes" if font in fonts.HELD_OUT else "no"
        closest = f"{fonts.TRAINING[index].name}, {alike:.2f}"
        lines.append(f"| {font.name} | {right} | {score.accuracy:.2%} | {place} | {closest} |")
    return lines


def _pair(nearest: Nearest) -> str:
    alike, first, second = nearest.pair
    return f"{fonts.TRAINING[first].name} and {fonts.TRAINING[second].name}, reach {alike:.2f}"


def _licences() -> list[str]:
    uses = [
        *(("evaluation file", font) for font in fonts.HELD_OUT),
        *(("further score", font) for font in fonts.FURTHER),
        *(("training", font) for font in fonts.TRAINING),
    ]
    return [f"| {use} | {font.name} | {font.licence} | {font.package} |" for use, font in uses]
