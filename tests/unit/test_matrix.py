"""The rows of the matrix, at their bounds, and the file that they are written in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.contract.matrix import MatrixError, parse_json, parse_toml
from agent.planning.matrix import MATRIX, Conditions, When, match

MIB, GIB = 2**20, 2**30
SHIPPED = Path(__file__).parents[2] / "configs" / "matrix.toml"
ORIN = Conditions("integrated", (8, 7), 8 * GIB, 4 * GIB, 0.05)

ROW = """
[[row]]
scenario = "small"
methods = ["fp4-dq"]
rationale = "why"
when = { below_budget = "64MiB", min_capability = "7.0" }  # key = value
"""
LAST = """
[[row]]
scenario = "rest"
methods = ["nf4"]
rationale = "why"
"""


@pytest.mark.parametrize(
    ("changes", "scenario"),
    [
        ({"share": 0.5}, "extreme-constraints"),
        ({"share": 0.4999}, "edge-limited-memory"),
        ({"share": 0.1}, "edge-limited-memory"),
        ({"share": 0.0999}, "edge"),
        ({"capability": (7, 4)}, "older-gpu"),
        ({"capability": (7, 5)}, "edge"),
        ({"gpu": "none", "capability": None}, "edge"),
        ({"gpu": "dedicated", "total_bytes": 12 * GIB}, "cloud-gpu"),
        ({"gpu": "dedicated", "total_bytes": 12 * GIB - 1}, "edge"),
        ({"total_bytes": 64 * GIB}, "edge"),
        ({"purpose": "research", "share": 0.9}, "research"),
    ],
)
def test_a_row_begins_exactly_at_its_bound(changes: dict[str, Any], scenario: str) -> None:
    assert match(replace(ORIN, **changes)).scenario == scenario


def test_the_shipped_file_is_the_built_in_matrix() -> None:
    assert parse_toml(SHIPPED.read_text(encoding="utf-8"), "matrix.toml") == MATRIX


def test_every_row_says_its_condition_in_words_with_its_numbers() -> None:
    assert [str(row.when) for row in MATRIX] == [
        "the device is for research",
        "the model takes at least 50% of the budget",
        "compute capability is below 7.5",
        "a GPU with memory of its own and device memory is at least 12.0 GiB",
        "the model takes at least 10% of the budget",
        "no earlier row applies",
    ]


@pytest.mark.parametrize(
    ("when", "changes"),
    [
        (When(gpu="dedicated"), {"gpu": "dedicated"}),
        (When(kernel="torch"), {"kernel": "torch"}),
        (When(below_share=0.05), {"share": 0.04}),
        (When(min_budget_bytes=5 * GIB), {"budget_bytes": 5 * GIB}),
        (When(below_budget_bytes=GIB), {"budget_bytes": GIB - 1}),
        (When(below_total_bytes=GIB), {"total_bytes": GIB - 1}),
        (When(min_capability=(9, 0)), {"capability": (9, 0)}),
        (When(below_capability=(8, 0)), {"capability": (7, 9)}),
    ],
)
def test_each_kind_of_condition_holds_only_where_it_should(when: When, changes: dict[str, Any]) -> None:
    assert not when.holds(ORIN)
    assert when.holds(replace(ORIN, **changes))


def test_a_capability_that_is_unknown_is_within_no_bound() -> None:
    unknown = replace(ORIN, capability=None)
    assert not When(below_capability=(99, 0)).holds(unknown)
    assert not When(min_capability=(0, 0)).holds(unknown)
    assert When().holds(unknown)


def test_a_matrix_without_a_row_that_applies_says_so() -> None:
    with pytest.raises(LookupError, match="no row"):
        match(ORIN, MATRIX[:1])


def test_a_file_of_ones_own_is_read() -> None:
    rows = parse_toml(ROW + LAST, "mine.toml")
    assert [row.scenario for row in rows] == ["small", "rest"]
    assert rows[0].when == When(below_budget_bytes=64 * MIB, min_capability=(7, 0))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            ROW.replace('"fp4-dq"', '"int3"') + LAST,
            "line 4, row 1 'small', key methods: unknown method 'int3'; known: nf4,",
        ),
        (
            ROW.replace("below_budget", "below_bugdet") + LAST,
            "line 6, row 1 'small', key when.below_bugdet: unknown; did you mean below_budget?",
        ),
        (ROW.replace('"64MiB"', '"many"') + LAST, "line 6, row 1 'small', key when.below_budget: "),
        (ROW.replace('"7.0"', '"7"') + LAST, "line 6, row 1 'small', key when.min_capability: "),
        (ROW.replace("rationale", "reason") + LAST, "row 1 'small', key rationale: Field required"),
        (ROW.replace("methods", "method") + LAST, "line 4, row 1 'small', key method: unknown; did you mean methods?"),
        (LAST + ROW, "line 2, row 1 'rest': it has no condition, so the 1 rows after it never apply"),
        (ROW, "line 2, row 1 'small': the last row must have no condition"),
        ("schema = 2" + LAST, "line 1, key schema: "),
        ("rows = 1", "key row"),
        ("= 1", "line 1"),
    ],
)
def test_an_error_names_line_row_and_key(text: str, told: str) -> None:
    with pytest.raises(MatrixError) as caught:
        parse_toml(text, "mine.toml")
    assert str(caught.value).startswith("mine.toml: ")
    assert told in str(caught.value)


def test_the_same_content_is_read_from_json_and_an_error_names_row_and_key() -> None:
    last = {"scenario": "rest", "methods": ["nf4"], "rationale": "why"}
    assert parse_json({"row": [last]})[0].method == "nf4"
    with pytest.raises(MatrixError, match=r"row 1 'rest', key when\.gpu"):
        parse_json({"row": [{**last, "when": {"gpu": "big"}}]})
    nonsense: Any
    for nonsense in (None, [], {}, {"row": []}, {"row": [7]}):
        with pytest.raises(MatrixError, match=r"^matrix: "):
            parse_json(nonsense)
