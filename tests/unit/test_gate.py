"""What a measurement has to reach, and the sentence when it does not."""

from __future__ import annotations

from typing import Any

import pytest

from agent.planning.gate import Thresholds, judge

GOOD: dict[str, Any] = {
    "rows": 100,
    "non_finite": 0,
    "agreement": 0.95,
    "accuracy": 0.90,
    "accuracy_source": 0.92,
    "latency_ms": {"p50": 3.0},
}
DEMANDED = Thresholds(min_agreement=0.95, max_accuracy_drop=0.021, min_accuracy=0.9, max_latency_ms=3.0)
NAN = float("nan")


def test_what_just_reaches_every_threshold_passes() -> None:
    assert judge(GOOD, DEMANDED) == []


@pytest.mark.parametrize(
    ("measured", "complaint"),
    [
        ({"non_finite": 2}, "2 of 100 answers are not finite"),
        ({"agreement": 0.9499}, "agreement 0.9499 with the source, 0.95 demanded"),
        ({"accuracy": 0.8999, "accuracy_source": 0.9}, "accuracy 0.8999, 0.9 demanded"),
        ({"accuracy_source": 0.95}, "accuracy fell from 0.9500 to 0.9000, a drop of 0.021 is allowed"),
        ({"accuracy": None}, "accuracy 0.9 demanded, but the evaluation data has no labels"),
        ({"latency_ms": {"p50": 3.01}}, "latency p50 3.01 ms, at most 3.0 ms demanded"),
        ({"agreement": 0.9, "answer": "classes"}, "agreement 0.9000 with the source, 0.95 demanded"),
        (
            {"agreement": 0.9, "answer": "embedding"},
            "agreement of nearest neighbours 0.9000 with the source, 0.95 demanded",
        ),
        (
            {"agreement": None, "answer": "embedding", "rows": 2},
            "agreement of nearest neighbours 0.95 demanded, but 2 rows are too few to tell; give at least 3",
        ),
        ({"accuracy": None, "answer": "embedding"}, "accuracy 0.9 demanded, but an embedding has no classes"),
        ({"agreement": NAN}, "agreement nan with the source, 0.95 demanded"),
        ({"accuracy_source": NAN}, "accuracy fell from nan to 0.9000, a drop of 0.021 is allowed"),
        ({"latency_ms": {"p50": NAN}}, "latency p50 nan ms, at most 3.0 ms demanded"),
    ],
)
def test_what_misses_a_threshold_is_told_with_both_numbers(measured: dict[str, Any], complaint: str) -> None:
    assert judge({**GOOD, **measured}, DEMANDED) == [complaint]


def test_every_complaint_is_made_at_once() -> None:
    measured = {**GOOD, "agreement": 0.1, "non_finite": 1, "accuracy": 0.1, "latency_ms": {"p50": 99.0}}
    assert len(judge(measured, DEMANDED)) == 5


def test_without_labels_only_agreement_counts_unless_accuracy_is_demanded() -> None:
    unlabelled = {**GOOD, "accuracy": None, "accuracy_source": None}
    assert judge(unlabelled, Thresholds()) == []
    assert len(judge(unlabelled, Thresholds(min_accuracy=0.1))) == 1


def test_an_accuracy_that_rose_is_no_drop() -> None:
    assert judge({**GOOD, "accuracy": 0.99}, Thresholds(max_accuracy_drop=0.0)) == []


def test_made_up_inputs_are_judged_by_cosine_unless_an_agreement_was_demanded() -> None:
    measured = {**GOOD, "inputs": "synthetic", "agreement": 0.5, "cosine": 0.99, "accuracy": None}
    assert judge(measured, Thresholds()) == []
    (complaint,) = judge({**measured, "cosine": 0.9}, Thresholds())
    assert complaint.startswith(
        "cosine 0.9000 with the source on 100 synthetic inputs, 0.95 demanded; give gate.dataset"
    )
    assert len(judge({**measured, "cosine": NAN}, Thresholds())) == 1
    assert len(judge({**measured, "cosine": None}, Thresholds())) == 1
    demanded = Thresholds(judges_synthetic=True)
    assert judge(measured, demanded) == ["agreement 0.5000 with the source, 0.95 demanded"]


def test_neighbours_that_too_few_rows_cannot_tell_are_missed_only_by_who_demands_some() -> None:
    measured = {**GOOD, "answer": "embedding", "agreement": None, "rows": 2, "accuracy": None, "accuracy_source": None}
    assert judge(measured, Thresholds(min_agreement=0.0)) == []
    assert len(judge(measured, Thresholds())) == 1
    assert judge({**measured, "inputs": "synthetic", "cosine": 0.99}, Thresholds()) == []


def test_a_canary_on_made_up_inputs_has_no_cosine_and_is_judged_by_the_rest() -> None:
    measured = {**GOOD, "inputs": "synthetic", "agreement": 0.5, "accuracy": None}
    assert judge(measured, Thresholds()) == []
    assert judge({**measured, "non_finite": 1}, Thresholds()) == ["1 of 100 answers are not finite"]
