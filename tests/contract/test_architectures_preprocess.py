"""Sequences computed from images against those that training computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.architectures import preprocess

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "architectures_reference.npz")
IMAGES = REFERENCE["preprocess/images"]


def test_cell_statistics_are_those_of_training() -> None:
    np.testing.assert_array_equal(preprocess.cell_statistics(IMAGES), REFERENCE["preprocess/basic_rnn"])


def test_stroke_rows_and_their_number_are_those_of_training() -> None:
    strokes, lengths = preprocess.stroke_features(IMAGES)
    np.testing.assert_array_equal(lengths, REFERENCE["preprocess/stroke_lengths"])
    np.testing.assert_allclose(strokes, REFERENCE["preprocess/stroke_rnn"], rtol=0, atol=1e-6)


def test_radical_ids_and_their_number_are_those_of_training() -> None:
    ids, lengths = preprocess.radical_ids(IMAGES)
    np.testing.assert_array_equal(lengths, REFERENCE["preprocess/radical_lengths"])
    np.testing.assert_array_equal(ids, REFERENCE["preprocess/simple_radical_rnn"])


def test_the_reference_images_reach_every_branch() -> None:
    lengths = REFERENCE["preprocess/stroke_lengths"]
    assert lengths.max() == preprocess.MAX_STROKES
    assert lengths.min() < preprocess.MIN_STROKES
    assert REFERENCE["preprocess/radical_lengths"].min() == 2
    assert max(image.max() for image in IMAGES) == pytest.approx(255)
