"""What is raised first, what fits, and how few upgrades it takes: the arithmetic of ``mixed``."""

from __future__ import annotations

import pytest

from agent.planning.methods import FOUR_BIT, METHODS, MIXED, NAMES, UnknownMethodError, file_tag, known, method
from agent.planning.mix import FP16, INT8, Part, Upgrade, applied, groups, order, raised_bytes, smallest, within

NF4 = METHODS["nf4"]
SIZE = 1 << 16


def part(name: str, base: float | None, int8: float | None = 0.0, numel: int = SIZE, *, fits_half: bool = True) -> Part:
    return Part({name: numel}, base, int8, fits_half)


def steps(*parts: Part) -> list[tuple[str, str]]:
    return [(upgrade.names[0], upgrade.method.name) for upgrade in order(parts, NF4, 64)]


def test_mixed_is_a_name_but_no_row_of_the_table() -> None:
    assert known(MIXED) == MIXED
    assert set(NAMES) == {*METHODS, MIXED}
    assert file_tag(MIXED) == "mixed"
    assert file_tag("nf4-dq") == "4bit_NF4_dq"
    with pytest.raises(UnknownMethodError, match=r"int3.*nf4.*mixed"):
        known("int3")
    with pytest.raises(UnknownMethodError):
        method(MIXED)


def test_what_saves_more_divergence_a_byte_is_raised_first() -> None:
    assert steps(part("a", 0.1), part("b", 0.3), part("c", 0.25, numel=SIZE // 2))[:3] == [
        ("c", "int8"),
        ("b", "int8"),
        ("a", "int8"),
    ]


def test_fp16_follows_int8_of_the_same_tensor_even_where_it_saves_more() -> None:
    found = steps(part("a", 0.5, 0.4), part("b", 0.05))
    assert found.index(("a", "int8")) < found.index(("a", "fp16"))
    assert steps(part("a", 9.0, 8.9), part("b", 1e-9))[:2] == [("a", "int8"), ("a", "fp16")]


def test_answers_that_are_not_finite_weigh_more_than_any_that_are() -> None:
    assert steps(part("a", 1000.0), part("b", None))[0] == ("b", "int8")
    assert steps(part("a", None, None), part("b", 0.1))[:2] == [("b", "int8"), ("a", "int8")]


def test_a_weight_beyond_float16_is_offered_int8_alone() -> None:
    assert steps(part("a", 0.5, 0.4, fits_half=False)) == [("a", "int8")]


@pytest.mark.parametrize("base", FOUR_BIT)
def test_an_upgrade_costs_what_the_method_table_says(base: str) -> None:
    low = METHODS[base]
    first, second = order([part("a", 0.1, numel=5000)], low, 128)
    assert first.added_bytes == INT8.tensor_bytes(5000, 128) - low.tensor_bytes(5000, 128)
    assert second.added_bytes == FP16.tensor_bytes(5000) - INT8.tensor_bytes(5000, 128)
    assert raised_bytes([5000, 5000], low, FP16, 128) == 2 * (first.added_bytes + second.added_bytes)


def upgrade(name: str, cost: int, to: str = "int8") -> Upgrade:
    return Upgrade((name,), METHODS[to], cost, 1.0)


def test_what_does_not_fit_is_passed_over_with_what_builds_on_it() -> None:
    wanted = [upgrade("a", 10), upgrade("b", 100), upgrade("b", 1, "fp16"), upgrade("c", 5), upgrade("a", 6, "fp16")]
    assert [(item.names[0], item.method.name) for item in within(wanted, 20)] == [("a", "int8"), ("c", "int8")]
    assert within(wanted, 9) == [wanted[3]]
    assert within(wanted, 0) == []


def test_the_last_step_of_a_tensor_is_the_one_that_counts() -> None:
    chain = [upgrade("a", 1), upgrade("b", 1), upgrade("a", 1, "fp16")]
    assert applied(chain) == {"a": FP16, "b": INT8}
    assert applied(()) == {}


def test_few_tensors_are_measured_one_by_one() -> None:
    assert groups(("a.weight", "b.weight")) == [("a.weight",), ("b.weight",)]


def test_many_tensors_are_grouped_by_layer_then_by_block_then_as_neighbours() -> None:
    names = [f"block.{b}.{layer}.{w}" for b in range(3) for layer in ("attn", "mlp") for w in ("q", "k", "v")]
    assert [len(group) for group in groups(names, 6)] == [3] * 6
    assert [len(group) for group in groups(names, 5)] == [6] * 3
    assert groups(names, 5)[1] == tuple(names[6:12])
    assert [len(group) for group in groups([f"{n}.weight" for n in range(10)], 4)] == [3, 3, 3, 1]


def asked(least: int | None, count: int, trials: int = 7) -> tuple[int | None, list[int]]:
    """Search where ``least`` upgrades and more pass; return what was found and every number that was tried."""
    tried: list[int] = []

    def passes(number: int) -> bool:
        tried.append(number)
        return least is not None and number >= least

    return smallest(count, passes, trials), tried


@pytest.mark.parametrize("least", range(1, 33))
def test_the_least_number_that_passes_is_found(least: int) -> None:
    found, tried = asked(least, 32)
    assert found == least
    assert len(tried) == len(set(tried)) <= 6


def test_where_all_upgrades_fail_nothing_else_is_tried() -> None:
    assert asked(None, 32) == (None, [32])
    assert asked(None, 0) == (None, [])


def test_where_trials_run_out_what_is_returned_has_passed() -> None:
    found, tried = asked(1, 1000, trials=4)
    assert len(tried) == 4
    assert found == min(tried)
