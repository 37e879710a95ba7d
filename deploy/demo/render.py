"""Draws characters as 64x64 grey images, bright strokes on dark, the form the `cnn` reads.

Rules: a character is drawn at one size for every font and centred by its ink, so a font's side bearings and baseline
leave no trace; it is never stretched to fill the image, so that size keeps telling 一 from 口. A font that lacks a
character is an error, never an empty image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]  # fonttools ships no types
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.demo.fonts import Font

IMAGE_PX = 64
EM_PX = 54
"""Size of the em square: leaves a margin of five pixels, so a moved or turned character stays inside."""


class MissingGlyphError(ValueError):
    """A font has no glyph, or an empty one, for characters it should show."""


def render_font(font: Font, characters: Sequence[str]) -> torch.Tensor:
    """Draw every character with one font.

    Returns:
        `(len(characters), 1, 64, 64)` uint8, 0 is background and 255 full ink.

    Raises:
        MissingGlyphError: the font's character map lacks some of the characters, or a glyph leaves no ink.
    """
    _require_glyphs(font, characters)
    face = ImageFont.truetype(str(font.path), EM_PX, index=font.index)
    return torch.stack([_draw(face, font, character) for character in characters])


def _require_glyphs(font: Font, characters: Sequence[str]) -> None:
    with TTFont(font.path, fontNumber=font.index, lazy=True) as table:
        known = table.getBestCmap()
    missing = [character for character in characters if ord(character) not in known]
    if missing:
        raise MissingGlyphError(f"{font.name} lacks {len(missing)} of {len(characters)}: {''.join(missing[:20])}")


def _draw(face: ImageFont.FreeTypeFont, font: Font, character: str) -> torch.Tensor:
    # A font's own box reaches to the baseline and the advance width; only the pixels tell where the ink is.
    canvas = Image.new("L", (2 * IMAGE_PX, 2 * IMAGE_PX))
    ImageDraw.Draw(canvas).text((IMAGE_PX, IMAGE_PX), character, font=face, fill=255, anchor="mm")
    ink = canvas.getbbox()
    if ink is None:
        raise MissingGlyphError(f"{font.name} draws {character} (U+{ord(character):04X}) without ink")
    left, top = (ink[0] + ink[2] - IMAGE_PX) // 2, (ink[1] + ink[3] - IMAGE_PX) // 2
    image = canvas.crop((left, top, left + IMAGE_PX, top + IMAGE_PX))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, IMAGE_PX, IMAGE_PX)
