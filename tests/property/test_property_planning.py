"""The planner over all devices and checkpoints."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent.planning.budget import Budget
from agent.planning.gate import Thresholds, judge
from agent.planning.memory import Footprint, estimate
from agent.planning.methods import BLOCKSIZES, METHODS, MIN_PACKED_NUMEL, method
from agent.planning.plan import LADDER, plan

GIB = 2**30
numels = st.lists(st.integers(1, 50_000_000), min_size=1, max_size=12)
names = st.sampled_from(sorted(METHODS))
usable_sets = st.sets(names, min_size=1)
budgets = st.builds(
    Budget,
    available_bytes=st.integers(0, 80 * GIB) | st.integers(0, GIB),
    reserve_bytes=st.integers(0, 2 * GIB),
    source=st.sampled_from(["nvml", "meminfo", "cgroup"]),
    total_bytes=st.integers(GIB, 80 * GIB),
    limit_bytes=st.none() | st.integers(0, 4 * GIB),
    has_gpu=st.booleans(),
    is_integrated=st.booleans(),
    capability=st.none() | st.tuples(st.integers(3, 12), st.integers(0, 9)),
    reclaimable_bytes=st.just(0) | st.integers(0, 4 * GIB),
    taken_bytes=st.just(0) | st.integers(0, 4 * GIB),
)


def rank(name: str | None) -> int:
    return len(LADDER) if name is None else LADDER.index(name)


@given(numels, budgets, usable_sets, st.integers(0, 40 * GIB))
def test_more_memory_never_leads_to_a_worse_method(
    sizes: list[int], budget: Budget, usable: set[str], more: int
) -> None:
    richer = replace(budget, available_bytes=budget.available_bytes + more)
    poor, rich = (plan(sizes, each, usable=usable).chosen for each in (budget, richer))
    assert rank(rich.method if rich else None) <= rank(poor.method if poor else None)


@given(numels, budgets, st.integers(0, 4 * GIB))
def test_it_makes_no_difference_whether_memory_is_free_or_the_models_own(
    sizes: list[int], budget: Budget, more: int
) -> None:
    free = replace(budget, available_bytes=budget.available_bytes + more)
    own = replace(budget, reclaimable_bytes=budget.reclaimable_bytes + more)
    one, other = plan(sizes, free), plan(sizes, own)
    assert (one.chosen and one.chosen.method) == (other.chosen and other.chosen.method)
    assert one.row == other.row


@given(numels, budgets, usable_sets)
def test_admission_is_a_matter_of_room(sizes: list[int], budget: Budget, usable: set[str]) -> None:
    made = plan(sizes, budget, usable=usable)
    if made.chosen is None:
        assert made.admission == "refuse"
    else:
        assert (made.admission == "side_by_side") == (made.chosen.estimated_bytes <= budget.bytes)
    assert all(each.fits for each in (*made.alternatives, *made.fallbacks))


@given(numels, budgets, usable_sets, names | st.just("auto"))
def test_what_is_chosen_fits_and_works_here(sizes: list[int], budget: Budget, usable: set[str], wanted: str) -> None:
    made = plan(sizes, budget, requested=wanted, usable=usable)
    if made.chosen is None:
        assert all(item.method not in usable or item.estimated_bytes > budget.room_bytes for item in made.candidates)
    else:
        assert made.chosen.method in usable
        needs = Footprint.of_numels(sizes)
        assert estimate(needs, method(made.chosen.method)).total_bytes <= budget.room_bytes
        assert wanted in ("auto", made.chosen.method)


@given(numels, budgets)
def test_the_same_question_has_the_same_answer(sizes: list[int], budget: Budget) -> None:
    assert plan(sizes, budget) == plan(list(sizes), replace(budget))


@given(numels, names, st.sampled_from(BLOCKSIZES))
def test_an_estimate_is_the_sum_of_its_tensors_and_never_more_than_the_floats(
    sizes: list[int], name: str, blocksize: int
) -> None:
    found = estimate(Footprint.of_numels(sizes), method(name), blocksize)
    single = sum(estimate(Footprint.of_numels([size]), method(name), blocksize).weights_bytes for size in sizes)
    assert found.weights_bytes == single
    assert found.weights_bytes <= 4 * sum(sizes)


@given(st.integers(MIN_PACKED_NUMEL, 10**9), names, st.sampled_from(BLOCKSIZES))
def test_exact_bytes_are_within_one_block_of_the_bits_per_weight(numel: int, name: str, blocksize: int) -> None:
    found = method(name)
    exact = found.tensor_bytes(numel, blocksize)
    assert 0 <= exact - numel * found.bits_per_weight(blocksize) / 8 < 16


@given(st.integers(MIN_PACKED_NUMEL, 10**9), st.sampled_from(("nf4", "fp4")))
def test_double_quantization_never_costs_memory_at_the_default_blocksize(numel: int, name: str) -> None:
    assert method(f"{name}-dq").tensor_bytes(numel) < method(name).tensor_bytes(numel)


measurements = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 1000),
        "non_finite": st.integers(0, 10),
        "answer": st.sampled_from(["classes", "embedding"]),
        "agreement": st.none() | st.floats(0, 1) | st.just(float("nan")),
        "accuracy": st.none() | st.floats(0, 1),
        "accuracy_source": st.none() | st.floats(0, 1),
        "latency_ms": st.fixed_dictionaries({"p50": st.floats(0, 1e6)}),
    }
)


@given(measurements, st.floats(0, 1), st.floats(0, 1), st.none() | st.floats(0, 1), st.none() | st.floats(0.1, 1e6))
def test_what_passes_a_gate_passes_every_milder_one(
    measured: dict[str, object], agreement: float, drop: float, accuracy: float | None, latency: float | None
) -> None:
    strict = Thresholds(agreement, drop, accuracy, latency)
    mild = Thresholds(agreement / 2, min(1.0, 2 * drop), None, None if latency is None else 2 * latency)
    if not judge(measured, strict):
        assert judge(measured, mild) == []
        assert measured["non_finite"] == 0
