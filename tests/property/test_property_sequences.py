"""A short run of ``make sequences``: each id runs once, ends once, and the journal can be read."""

from __future__ import annotations

import pytest

from tests.fakes.sequences import play


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_whatever_comes_each_operation_runs_once_and_ends_once(first: int) -> None:
    tally = play(20, first)
    assert tally.lives == 20
    assert tally.operations > 50
    assert tally.deaths > 0
