"""The gate's figures against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from agent.contract.errors import ErrorCode
from agent.quantization import errors, metrics

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
