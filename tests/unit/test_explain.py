"""A decision in sentences: every fact of the record is told, and nothing that it does not hold."""

from __future__ import annotations

from dataclasses import replace

from agent.planning.budget import Budget
from agent.planning.explain import WORDS, explain
from agent.planning.methods import NAMES
from agent.planning.plan import plan

MIB, GIB = 2**20, 2**30
ORIN = Budget(4 * GIB, 512 * MIB, "meminfo", 8 * GIB, has_gpu=True, is_integrated=True, capability=(8, 7))


def test_every_method_has_words() -> None:
    assert set(WORDS) == set(NAMES)


def test_a_plan_is_told_with_its_case_its_memory_and_its_candidates() -> None:
    told = explain(plan([MIB], ORIN).to_json())
    assert told[0] == "This device and model are the case 'edge' of the decision matrix: no special case applies to it."
    assert told[1].startswith(
        "Planned for it: nf4 (4 bits a weight, values spaced as a normal distribution), since it "
    )
    assert told[2].startswith("It may take 3.5 GiB: the operating system (/proc/meminfo) says that 4.0 GiB of 8.0 GiB ")
    assert told[3].startswith("Estimated need, weights and what answering takes: nf4 4.6 MiB (fits), nf4-dq 4.5 MiB (")
    assert told[4:] == ["Chosen: nf4."]


def test_a_refusal_is_told() -> None:
    told = explain(plan([MIB], replace(ORIN, available_bytes=0), usable=["nf4"]).to_json())
    assert "fp4 4.6 MiB (no: failed its self-test here)" in told[2]
    assert "nf4 4.6 MiB (no: too large)" in told[2]
    assert told[-1].startswith("Nothing was built: ")


def test_a_method_that_was_asked_for_is_told_as_such() -> None:
    assert explain(plan([MIB], ORIN, requested="int8").to_json())[0] == "int8 (8 bits a weight) was asked for by name."


def test_measurements_and_what_they_overruled_are_told() -> None:
    told = explain(
        {
            **plan([MIB], replace(ORIN, reclaimable_bytes=MIB, limit_bytes=GIB)).to_json(),
            "admission": "unload_first",
            "method": "int8",
            "overruled": ["nf4: agreement"],
            "evidence": [
                {"method": "nf4", "passes": False, "complaints": ["too little"], "agreement": 0.9, "accuracy": 0.8},
                {"method": "mixed", "passes": False, "complaints": ["was killed"]},
                {"method": "int8", "passes": True, "complaints": [], "agreement": None, "cosine": 0.99},
            ],
            "estimate_error": {"weights": 0.001, "process_peak": -0.02, "other": None},
        }
    )  # fmt: skip
    assert "and 1.0 MiB that the model holds now" in told[2]
    assert "limited to 1.0 GiB by configuration" in told[2]
    assert told[3].startswith("Old and new form do not fit side by side")
    assert told[-5:] == [
        "Measured, nf4: 90.0% of its answers are those of the source, accuracy 80.0%; refused (too little).",
        "mixed could not be measured: was killed.",
        "Measured, int8: answers compared by their direction; passes.",
        "Kept: int8 (8 bits a weight); the measurements overruled the plan.",
        "Measured against the estimate: weights +0.1%, process peak -2.0%.",
    ]


def test_how_it_is_kept_and_called_is_told_where_something_else_than_the_usual_was_asked_for() -> None:
    reasons = {"residency": "faster", "compile": "it failed: no g++", "graphs": "graphs are for GPUs"}
    measured = {name: {"mode": "auto", "reason": reason} for name, reason in reasons.items()}
    assert explain({"method": "nf4", "measured": measured}) == [
        "Chosen: nf4.",
        "Weights in memory: faster.",
        "Compiled by torch: it failed: no g++.",
        "Replayed as CUDA graphs: graphs are for GPUs.",
    ]
    usual = {"residency": {"mode": "packed", "reason": "packed, as configured"}, "compile": None, "graphs": None}
    assert explain({"method": "nf4", "measured": usual}) == ["Chosen: nf4."]


def test_an_empty_record_is_told_as_nothing_more_than_its_reason() -> None:
    assert explain({"method": "nf4"}) == ["Chosen: nf4."]
    assert explain({"reason": "r-1 was served before"}) == ["Nothing was built: r-1 was served before."]


def test_a_comparison_after_which_nothing_else_is_served_says_that_nothing_was_changed() -> None:
    record = {"compare": [{"method": "nf4"}], "reason": "1 of 1 methods were measured"}
    assert explain(record) == ["Nothing was changed: 1 of 1 methods were measured."]


def test_a_record_of_another_form_is_told_by_its_reason_alone() -> None:
    assert explain({"scenario": 7, "reason": "because"}) == ["because"]
    assert explain({"evidence": [3]}) == []
    assert explain({}) == []


def test_where_no_method_passes_nothing_is_kept() -> None:
    evidence = [
        {"method": name, "passes": False, "complaints": ["too little"], "agreement": 0.1} for name in ("nf4", "fp16")
    ]
    told = explain({"method": "fp16", "overruled": True, "evidence": evidence})
    assert told[-1] == "Nothing is kept: no method passes."


def test_what_an_operation_that_failed_was_to_keep_is_not_said_to_be_kept() -> None:
    evidence = [{"method": "nf4", "passes": True, "complaints": [], "agreement": None, "cosine": 0.99}]
    record = {"method": "nf4", "evidence": evidence}
    assert explain(record)[-1] == "Kept: nf4, as planned."
    assert explain(record, has_failed=True)[-1] == "It was to be nf4, as planned."
    overruled = {**record, "overruled": ["nf4-dq: agreement"]}
    assert explain(overruled, has_failed=True)[-1].startswith("It was to be nf4 (4 bits a weight")
