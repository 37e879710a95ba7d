"""The gate's figures against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agent.contract.errors import ErrorCode
from agent.quantization import errors, metrics, neighbours

SOURCE = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]])
OTHER = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 8.0]])
NAN_ROW = torch.tensor([[float("nan"), 0.0], [0.0, 1.0], [3.0, float("inf")], [0.0, 4.0]])


def test_agreement_is_the_share_of_rows_with_the_same_top_class() -> None:
    assert metrics.agreement(SOURCE, OTHER) == 0.75


def test_accuracy_is_the_share_of_rows_with_the_labelled_top_class() -> None:
    assert metrics.accuracy(SOURCE, torch.tensor([0, 1, 1, 1])) == 0.75


def test_cosine_is_the_mean_over_rows() -> None:
    left, right = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [6.0, 8.0]])
    assert metrics.cosine(left, right) == pytest.approx(0.5)


def test_divergence_is_in_nats_and_from_source_to_result() -> None:
    source, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    # Halves against three quarters and a quarter: 0.5 ln(0.5/0.75) + 0.5 ln(0.5/0.25).
    assert metrics.divergence(source, other) == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert metrics.divergence(source, source) == 0.0


def test_rows_that_are_not_finite_are_counted_and_never_agree() -> None:
    assert metrics.non_finite_rows(NAN_ROW) == 2
    assert metrics.agreement(SOURCE, NAN_ROW) == 0.5
    assert metrics.accuracy(NAN_ROW, torch.tensor([0, 1, 1, 1])) == 0.5
    assert metrics.cosine(SOURCE, NAN_ROW) == pytest.approx(1.0)
    assert metrics.divergence(SOURCE, NAN_ROW) == pytest.approx(0.0)


def test_no_finite_row_at_all_gives_no_figure_rather_than_a_good_one() -> None:
    nothing = torch.full((2, 2), float("nan"))
    assert metrics.cosine(nothing, nothing) is None
    assert metrics.divergence(nothing, nothing) is None
    assert metrics.agreement(nothing, nothing) == 0.0


def on_a_circle(*degrees: float) -> torch.Tensor:
    """Return the unit vectors at these angles: the nearest is the one at the nearest angle."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


CIRCLE = on_a_circle(0, 10, 30, 70, 85)
NAN_VECTOR = torch.full((2,), float("nan"))


def with_row(vectors: torch.Tensor, row: int, value: torch.Tensor) -> torch.Tensor:
    changed = vectors.clone()
    changed[row] = value
    return changed


def test_neighbours_of_the_same_vectors_are_the_same_whatever_their_lengths() -> None:
    lengths = torch.tensor([[1e-30], [1.0], [7.0], [1e30], [3e38]])
    assert metrics.neighbour_agreement(CIRCLE, CIRCLE) == 1.0
    assert metrics.neighbour_agreement(CIRCLE, CIRCLE * lengths) == 1.0


@pytest.mark.parametrize(
    ("angles", "share"),
    [
        ((0, 10, 30, 71, 85), 1.0),
        ((0, 10, 49, 70, 85), 0.8),  # the third is now nearest to the fourth
        ((0, 21, 30, 70, 85), 0.8),  # the second to the third
        ((80, 10, 30, 70, 85), 0.2),  # only the third keeps the second
    ],
)
def test_each_row_whose_nearest_other_row_changed_disagrees(angles: tuple[float, ...], share: float) -> None:
    assert metrics.neighbour_agreement(CIRCLE, on_a_circle(*angles)) == pytest.approx(share)


def test_among_duplicates_in_the_source_any_is_the_neighbour() -> None:
    source = on_a_circle(0, 10, 10, 50)
    assert metrics.neighbour_agreement(source, on_a_circle(0, 10, 9, 50)) == 1.0
    assert metrics.neighbour_agreement(source, on_a_circle(0, 9, 10, 50)) == 1.0
    assert metrics.neighbour_agreement(on_a_circle(0, 10, 9, 50), on_a_circle(0, 10, 11, 50)) == 0.5


def test_rows_whose_last_bits_alone_tell_them_apart_count_as_duplicates() -> None:
    source, other = on_a_circle(0, 10.00002, 10, 50), on_a_circle(0, 9, 10, 50)
    assert not torch.equal(source[1], source[2])
    assert metrics.neighbour_agreement(source, other) == 1.0


def test_answers_that_are_all_alike_do_not_agree_by_being_equally_near() -> None:
    source = torch.from_numpy(np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32))
    for constant in (torch.ones(100, 8), torch.zeros(100, 8)):
        share = metrics.neighbour_agreement(source, constant)
        assert share is not None
        assert share < 0.1


def test_a_row_that_is_not_finite_never_agrees_and_is_nobodys_neighbour() -> None:
    # The last row's neighbour is the fourth and the other way round: without one, both disagree.
    broken = with_row(CIRCLE, 4, NAN_VECTOR)
    assert metrics.neighbour_agreement(CIRCLE, broken) == pytest.approx(0.6)
    assert metrics.neighbour_agreement(broken, CIRCLE) == pytest.approx(0.6)
    assert metrics.neighbour_agreement(broken, broken) == pytest.approx(0.8)
    alone = torch.full((5, 2), float("inf"))
    assert metrics.neighbour_agreement(CIRCLE, alone) == 0.0
    assert metrics.neighbour_agreement(alone, alone) == 0.0
    alone[2] = CIRCLE[2]
    assert metrics.neighbour_agreement(CIRCLE, alone) == 0.0
    assert metrics.neighbour_agreement(alone, CIRCLE) == 0.0


def test_two_rows_cannot_but_keep_their_neighbours_and_so_tell_nothing() -> None:
    assert metrics.neighbour_agreement(CIRCLE[:1], CIRCLE[:1]) is None
    assert metrics.neighbour_agreement(CIRCLE[:2], CIRCLE[2:4]) is None
    assert metrics.neighbour_agreement(CIRCLE[:3], CIRCLE[:3]) == 1.0


@pytest.mark.parametrize("rows", [3, neighbours.CHUNK_ROWS, neighbours.CHUNK_ROWS + 1, 3 * neighbours.CHUNK_ROWS + 7])
def test_neighbours_found_in_chunks_are_those_of_the_whole_matrix(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    source = torch.randn(rows, 16, generator=generator)
    other = source + 0.3 * torch.randn(rows, 16, generator=generator)
    nearest = []
    for vectors in (source, other):
        units = torch.nn.functional.normalize(vectors.double(), dim=1)
        nearest.append((units @ units.T).fill_diagonal_(-2).argmax(dim=1))
    wanted = float((nearest[0] == nearest[1]).double().mean())
    assert metrics.neighbour_agreement(source, other) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("count", "p50", "p99"), [(1, 1.0, 1.0), (4, 2.0, 4.0), (100, 50.0, 99.0), (200, 100.0, 198.0)]
)
def test_percentiles_are_nearest_ranks(count: int, p50: float, p99: float) -> None:
    times = [float(value) for value in range(count, 0, -1)]
    assert metrics.percentiles(times) == {"p50": p50, "p99": p99}


def test_every_error_of_the_builder_has_a_code_of_the_contract() -> None:
    codes = {kind.code for kind in errors.ALL}
    assert codes <= {code.value for code in ErrorCode}
    assert len(codes) == len(errors.ALL)
