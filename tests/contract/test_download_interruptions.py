"""The short form of ``make interruptions``: lines that break and processes that are killed at random places."""

from __future__ import annotations

from tests.torture.bad_line import KINDS
from tests.torture.interruptions import MIB, campaign


def test_no_interruption_costs_more_than_a_chunk() -> None:
    found = campaign(24, seed=5, size=8 * MIB, each=8, rate=32 * MIB)
    assert found.wrong == []
    assert found.interruptions == 24
    assert set(found.lost) == set(KINDS)
