"""How many rows make a batch: the smallest that is nearly as good as the best, if there is time to find it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.serving import tuning
from agent.serving.tuning import CALLS, HANDOVER_S, NEARLY, Tuning, joined_rows

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 32


class Passes:
    """Forward passes on a clock of their own: ``fixed_s`` and ``row_s`` for each row."""

    def __init__(self, fixed_s: float, row_s: float, disturbed_s: float = 0.0) -> None:
        self._fixed_s, self._row_s, self._disturbed_s = fixed_s, row_s, disturbed_s
        self.now = 0.0
        self.sizes: list[int] = []

    def perf_counter(self) -> float:
        return self.now

    def __call__(self, rows: int) -> None:
        self.sizes.append(rows)
        # All but the last of each size are disturbed.
        is_disturbed = self.sizes.count(rows) <= CALLS
        self.now += self._fixed_s + rows * self._row_s + self._disturbed_s * is_disturbed


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[int, float]]]:
    def find(passes: Passes, most: int = MOST, enough_s: float = 60.0) -> tuple[int, dict[int, float]]:
        monkeypatch.setattr(tuning, "time", passes)
        return joined_rows(passes, most, enough_s=enough_s)

    return find


def test_rows_that_cost_alike_in_every_batch_are_joined_until_the_handover_is_spread(
    found: Callable[..., tuple[int, dict[int, float]]],
) -> None:
    rows, measured = found(Passes(0.0, HANDOVER_S))
    assert rows == 8
    assert measured[8] <= NEARLY * measured[MOST] < measured[4]


def test_a_pass_whose_time_does_not_grow_with_its_rows_takes_as_many_as_there_may_be(
    found: Callable[..., tuple[int, dict[int, float]]],
) -> None:
    assert found(Passes(0.01, 0.0))[0] == MOST
    assert found(Passes(0.01, 0.0), most=24)[0] == 24


def test_what_disturbs_a_pass_does_not_count(found: Callable[..., tuple[int, dict[int, float]]]) -> None:
    rows, measured = found(Passes(0.0, HANDOVER_S, disturbed_s=0.05))
    assert rows == 8
    assert measured == pytest.approx(found(Passes(0.0, HANDOVER_S))[1], abs=1e-3)


def test_passes_that_take_long_are_not_tried_in_every_size(
    found: Callable[..., tuple[int, dict[int, float]]],
) -> None:
    passes = Passes(0.1, 0.0)
    rows, measured = found(passes, enough_s=1.0)
    assert rows == MOST
    assert list(measured) == [1]
    assert passes.now < 1.0 + 0.2


def test_one_row_is_the_most_of_a_type_that_joins_none(found: Callable[..., tuple[int, dict[int, float]]]) -> None:
    assert found(Passes(0.0, 1e-3), most=1)[0] == 1


def test_a_report_has_texts_for_keys() -> None:
    report = Tuning(is_recorded=False, reason="r", joined_rows=2, row_ms={1: 0.5, 2: 0.25}).to_json()
    assert report == {
        "is_recorded": False, "reason": "r", "joined_rows": 2, "row_ms": {"1": 0.5, "2": 0.25}, "layout": None,
    }  # fmt: skip
