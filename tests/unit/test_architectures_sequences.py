from __future__ import annotations

import numpy as np
import pytest

from agent.architectures import preprocess


def image_with(*pixels: tuple[int, int]) -> np.ndarray:
    """Return one black image with these pixels at full brightness."""
    image = np.zeros((1, 64, 64), dtype=np.float32)
    for row, column in pixels:
        image[0, row, column] = 1.0
    return image


def test_a_cell_with_one_bright_pixel_is_no_stroke() -> None:
    strokes, lengths = preprocess.stroke_features(image_with((0, 0), (20, 20), (20, 21)))
    assert lengths.tolist() == [2]  # the cell with two pixels, then the row for the whole image
    assert strokes[0, 0, 3:5].tolist() == [2 / 8, 2 / 8]
    assert strokes[0, 1, 3:5].tolist() == [0.5, 0.5]


def test_a_stroke_row_describes_its_cell() -> None:
    strokes, _lengths = preprocess.stroke_features(image_with((8, 0), (8, 1)))
    share = 2 / 64
    expected = [share, np.sqrt(share * (1 - share)), share, 1 / 8, 0.0, 1.0, 1.0, share]
    assert strokes[0, 0] == pytest.approx(expected, abs=1e-6)
    assert not strokes[0, 2:].any()


def test_a_quadrant_needs_five_bright_pixels_for_a_radical() -> None:
    five_each = [(row, column + i) for row in (0, 63) for column in (0, 40) for i in range(5)]
    ids, lengths = preprocess.radical_ids(image_with(*five_each))
    assert lengths.tolist() == [4]
    value = 100 * 5 / 1024 + 50 + 30
    assert ids[0].tolist() == [*(int(value + 10 * quadrant) + 1 for quadrant in range(4)), 0]
    assert preprocess.radical_ids(image_with(*five_each[1:]))[1].tolist() == [3]


def test_an_almost_empty_image_falls_back_to_two_radicals_of_the_whole() -> None:
    ids, lengths = preprocess.radical_ids(image_with((0, 0)))
    assert lengths.tolist() == [2]
    assert ids[0].tolist() == [1, 500, 0, 0, 0]


def test_cell_statistics_stand_row_by_row() -> None:
    features = preprocess.cell_statistics(image_with((0, 8)))
    assert features.shape == (1, 64, 4)
    assert features[0, 1].tolist() == pytest.approx([1 / 64, np.sqrt(1 / 64 * 63 / 64), 1.0, 0.0])
    assert not np.delete(features[0], 1, axis=0).any()
