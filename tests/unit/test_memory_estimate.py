"""What a model is estimated to need, and how a device learns from how far it was off."""

from __future__ import annotations

import pytest

from agent.planning.memory import SERVED_ROWS, Footprint, Learned, estimate
from agent.planning.methods import MIN_PACKED_NUMEL, method

NEEDS = Footprint((1_048_576, 5000, 100), plain_bytes=400, transient_numel=524_288, activation_bytes=30_000)


def test_small_tensors_stay_as_they_are() -> None:
    packed, plain = MIN_PACKED_NUMEL, MIN_PACKED_NUMEL - 1
    both, small = Footprint.of_numels([packed, plain]), Footprint.of_numels([plain])
    assert estimate(both, method("nf4")).weights_bytes == 2048 + 256 + 4 * plain
    assert estimate(small, method("nf4")).weights_bytes == 4 * plain
    assert estimate(small, method("fp16")).weights_bytes == 2 * plain
    assert estimate(Footprint(()), method("nf4")).total_bytes == 0


def test_what_answering_takes_is_the_unpacked_weight_and_the_activations() -> None:
    found = estimate(NEEDS, method("nf4"))
    assert found.working_bytes == 4 * 524_288 + 30_000
    assert found.total_bytes == found.weights_bytes + found.working_bytes
    assert estimate(NEEDS, method("fp32")).working_bytes == 30_000


def test_what_has_no_packed_form_is_held_as_it_is() -> None:
    assert estimate(NEEDS, method("fp32")).weights_bytes == 4 * (1_048_576 + 5000 + 100) + 400


def test_a_footprint_survives_json() -> None:
    assert Footprint.from_json(NEEDS.to_json()) == NEEDS
    assert NEEDS.rows == SERVED_ROWS


def test_the_first_measurement_counts_in_full_and_the_next_ones_are_smoothed() -> None:
    first = Learned().after(raw_working_bytes=100, measured_working_bytes=150)
    assert first == Learned(1.5, 1)
    second = first.after(raw_working_bytes=100, measured_working_bytes=100)
    assert second.working_factor == pytest.approx(1.25)
    later = second
    for _ in range(20):
        later = later.after(raw_working_bytes=100, measured_working_bytes=200)
    assert later.working_factor == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(("measured", "factor"), [(0, 0.125), (10**12, 8.0)])
def test_one_odd_moment_is_not_believed_as_a_whole(measured: int, factor: float) -> None:
    assert Learned().after(raw_working_bytes=100, measured_working_bytes=measured).working_factor == factor


def test_what_was_learned_corrects_the_next_estimate_and_leaves_the_weights_alone() -> None:
    plain, learned = estimate(NEEDS, method("nf4")), estimate(NEEDS, method("nf4"), learned=Learned(2.0, 3))
    assert learned.weights_bytes == plain.weights_bytes
    assert learned.working_bytes == 2 * plain.working_bytes
    assert learned.raw_working_bytes == plain.raw_working_bytes


def test_what_was_learned_survives_json() -> None:
    assert Learned.from_json(Learned(1.5, 3).to_json()) == Learned(1.5, 3)
    assert Learned.from_json(Learned().to_json()) == Learned()
