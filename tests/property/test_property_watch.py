"""The watch over made-up days: it never switches more often than the memory really changes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.planning.watch import WatchPolicy
from deploy.bench.flap import KINDS, LOOK_S, Case, Run, Traces, cases, noisy, play, run

CASES = {case.name: case for case in cases()}
HOURS = 3600.0
cases_drawn = st.sampled_from(sorted(CASES)).map(CASES.__getitem__)


@st.composite
def plateaus(draw: st.DrawFn, case: Case) -> list[float]:
    """Levels around the plan's steps, each for a minute to two hours; hypothesis makes the worst of them."""
    starts = [start for start, method in case.steps if method is not None]
    levels = st.builds(lambda start, share: start * share, st.sampled_from(starts), st.floats(0.9, 1.6))
    pieces = draw(st.lists(st.tuples(levels, st.integers(12, 1440)), min_size=1, max_size=6))
    return [level for level, looks in pieces for _ in range(looks)]


@settings(max_examples=40)
@given(st.data(), cases_drawn, st.integers(0, 2**32))
def test_levels_that_come_and_go_lead_to_at_most_one_switch_each(data: st.DataObject, case: Case, seed: int) -> None:
    trace, rng = data.draw(plateaus(case)), random.Random(seed)
    found = play(case, trace, noisy(trace, rng, has_spikes=False), rng)
    assert found.switches <= found.real


@settings(max_examples=30)
@given(cases_drawn, st.sampled_from(sorted(KINDS)), st.integers(0, 2**32))
def test_no_kind_of_trace_makes_it_flap(case: Case, kind: str, seed: int) -> None:
    found = run(case, kind, seed, seconds=4 * HOURS)
    assert found.switches <= found.real


@settings(max_examples=30)
@given(cases_drawn, st.lists(st.integers(0, 64 * 2**30), max_size=40))
def test_the_simulation_s_table_is_the_plan(case: Case, rooms: list[int]) -> None:
    edges = [start + offset for start, _ in case.steps for offset in (-1, 0, 1) if start + offset >= 0]
    for room in (*edges, *rooms):
        assert case.choice(min(room, case.budget.total_bytes)) == case.plan(min(room, case.budget.total_bytes))


def test_real_changes_are_followed() -> None:
    case = CASES["large, nf4 first"]
    starts = {method: start for start, method in case.steps}
    high, low = 2.0 * starts["nf4"], (starts["nf4-dq"] + case.resident["nf4"]) / 2
    trace = [level for level in (high, low, high, low, high) for _ in range(round(HOURS / LOOK_S))]
    assert play(case, trace, trace, random.Random(1)) == Run(real=4, switches=4, wishes=4)


def test_the_simulation_would_notice_an_impatient_watch() -> None:
    """Without margin, patience and dwell the same day at one level makes it switch to and fro."""
    hasty = WatchPolicy(down_after_s=0.0, up_after_s=0.0, up_margin=0.0, min_dwell_s=0.0, pause_s=0.0)
    runs = [
        run(CASES["large, nf4 first"], kind, seed, policy=hasty) for kind in ("steady", "spikes") for seed in (1, 2, 3)
    ]
    assert any(each.switches > each.real for each in runs)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_trace_lasts_as_long_as_it_should(kind: str) -> None:
    assert len(KINDS[kind](Traces(CASES["demo"], random.Random(1), 100))) == 100
