"""Which methods are built in which order, and which one is kept."""

from __future__ import annotations

from typing import Any

import pytest

from agent.contract.errors import ErrorCode
from agent.deployment.facts import lesson, mix_job, variant
from agent.deployment.ports import StepError
from agent.deployment.selection import select
from agent.planning import evidence
from agent.planning.gate import Thresholds
from agent.planning.memory import Learned

PLAN = {"method": "nf4", "fallbacks": ["mixed", "int8"], "alternatives": ["fp4", "nf4-dq"], "reason": "why"}


def gate(agreement: float | None, **more: Any) -> dict[str, Any]:
    latency = {"p50": 1.0}
    return {
        "rows": 400, "inputs": "dataset", "agreement": agreement, "cosine": 0.99, "non_finite": 0,
        "accuracy": None, "accuracy_source": None, "latency_ms": latency, **more,
    }  # fmt: skip


class Bench:
    """Builds what it was told to; anything else cannot be built."""

    def __init__(self, **gates: dict[str, Any]) -> None:
        self.gates = {name.replace("_", "-"): each for name, each in gates.items()}
        self.built: list[str] = []

    def __call__(self, method: str) -> tuple[dict[str, Any], bool]:
        self.built.append(method)
        if method not in self.gates:
            raise StepError(ErrorCode.BUILD_KILLED, f"{method} was killed")
        return {"gate": self.gates[method], "resident_bytes": 1}, False


def test_where_every_answer_is_kept_nothing_else_is_built() -> None:
    bench = Bench(nf4=gate(1.0))
    kept, record = select(PLAN, bench, Thresholds())
    assert (kept.method, bench.built) == ("nf4", ["nf4"])
    assert record["reason"] == "why"
    assert "overruled" not in record


def test_a_better_answer_in_no_more_memory_is_taken_and_said_to_overrule_the_plan() -> None:
    bench = Bench(nf4=gate(0.96), fp4=gate(0.99), nf4_dq=gate(0.97))
    kept, record = select(PLAN, bench, Thresholds())
    assert (kept.method, bench.built) == ("fp4", ["nf4", "fp4", "nf4-dq"])
    told = "fp4 takes no more memory than nf4 and answers better: agreement 99.00% on 400 rows against agreement 96.00%"
    assert record["overruled"] == [f"{told} on 400 rows"]


def test_a_difference_that_chance_explains_overrules_nothing() -> None:
    bench = Bench(nf4=gate(0.97), fp4=gate(0.9725), nf4_dq=gate(0.975))
    assert select(PLAN, bench, Thresholds())[0].method == "nf4"


def test_an_alternative_that_the_gate_refuses_or_that_cannot_be_built_is_left_out() -> None:
    bench = Bench(nf4=gate(0.96), fp4=gate(0.999, non_finite=1))
    kept, record = select(PLAN, bench, Thresholds())
    assert kept.method == "nf4"
    assert [each["passes"] for each in record["evidence"]] == [True, False, False]
    assert record["evidence"][2]["complaints"] == ["nf4-dq was killed"]
    assert "overruled" not in record


def test_a_plan_that_compares_measures_all_even_if_nothing_can_be_better() -> None:
    bench = Bench(nf4=gate(1.0), fp4=gate(1.0), nf4_dq=gate(1.0))
    assert select({**PLAN, "compares": True}, bench, Thresholds())[0].method == "nf4"
    assert bench.built == ["nf4", "fp4", "nf4-dq"]


def test_what_the_gate_refuses_gives_way_step_by_step_and_no_alternative_is_tried() -> None:
    bench = Bench(nf4=gate(0.5), mixed=gate(0.9), int8=gate(0.99))
    kept, record = select(PLAN, bench, Thresholds())
    assert (kept.method, bench.built) == ("int8", ["nf4", "mixed", "int8"])
    assert record["reason"].startswith("measurement overruled the plan: nf4: agreement 0.5000")


def test_when_nothing_passes_the_refusals_are_the_error_and_the_record_goes_with_it() -> None:
    with pytest.raises(StepError) as caught:
        select(PLAN, Bench(nf4=gate(0.5), mixed=gate(0.6), int8=gate(0.7)), Thresholds())
    assert caught.value.code is ErrorCode.GATE_FAILED
    assert [part.partition(":")[0] for part in caught.value.detail.split(" | ")] == ["nf4", "mixed", "int8"]
    assert len(caught.value.facts["evidence"]) == 3


def test_a_planned_method_that_cannot_be_built_is_an_error_of_its_own() -> None:
    with pytest.raises(StepError, match="nf4 was killed"):
        select(PLAN, Bench(), Thresholds())


def test_made_up_inputs_are_compared_by_the_distance_of_the_answers() -> None:
    near, far = gate(0.5, inputs="synthetic", cosine=0.99), gate(0.9, inputs="synthetic", cosine=0.98)
    assert evidence.is_better(near, far)
    assert not evidence.is_better(far, near)
    assert not evidence.is_better(near, {**near, "cosine": 0.9895})
    assert not evidence.is_better({**near, "cosine": None}, far)
    assert not evidence.is_perfect(gate(1.0, inputs="synthetic"))


def test_answers_that_cannot_be_compared_are_not_better() -> None:
    assert not evidence.is_better(gate(None), gate(0.5))
    assert not evidence.is_better(gate(0.9), gate(None))
    assert evidence.told(gate(None)) == "agreement not known"
    assert evidence.told(gate(None, inputs="synthetic", cosine=None)) == "cosine not known"


def test_a_mix_starts_from_the_planned_method_and_is_named_by_what_was_demanded() -> None:
    job = mix_job({"planned": "fp4-dq", "mixed_budget_bytes": 7}, Thresholds())
    assert job["mixed"] == {"base": "fp4-dq", "budget_bytes": 7}
    assert mix_job({"planned": "int8"}, Thresholds())["mixed"]["base"] == "nf4"
    names = {variant("mixed", mix_job({"planned": "nf4"}, Thresholds(least))) for least in (0.9, 0.95)}
    assert len(names) == 2
    assert variant("mixed", job) == variant(
        "mixed", mix_job({"planned": "fp4-dq", "mixed_budget_bytes": 7}, Thresholds())
    )
    assert variant("nf4", {}) == "nf4"


ESTIMATE = {"estimates": {"nf4": {"weights_bytes": 110, "working_bytes": 40, "raw_working_bytes": 40}}}
LOADED = {"resident_bytes": 100, "rss_before_bytes": 1000, "peak_rss_bytes": 1200, "is_peak_exact": True}


def test_a_load_teaches_how_far_the_estimate_was_off() -> None:
    errors, learned = lesson(ESTIMATE, "nf4", LOADED, Learned())
    assert errors == {"weights": 0.1, "process_peak": round(1150 / 1200 - 1, 4)}
    assert learned == Learned(2.5, 1)


def test_on_a_gpu_the_peak_is_that_of_its_own_memory() -> None:
    device = {"allocated_bytes": 150, "peak_allocated_bytes": 250}
    errors, learned = lesson(ESTIMATE, "nf4", {**LOADED, "device": device}, Learned())
    assert errors is not None
    assert errors["process_peak"] == round((50 + 150) / 250 - 1, 4)
    assert learned.working_factor == 2.5


@pytest.mark.parametrize(
    ("method", "loaded"),
    [("nf4", {"resident_bytes": 1}), ("nf4", {**LOADED, "is_peak_exact": False}), ("int8", LOADED), ("mixed", LOADED)],
)
def test_nothing_is_learned_from_what_was_not_measured_or_not_estimated(method: str, loaded: dict[str, Any]) -> None:
    assert lesson(ESTIMATE, method, loaded, Learned()) == (None, Learned())
