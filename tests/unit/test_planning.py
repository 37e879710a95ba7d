"""Sizes to the byte, one device per row of the matrix, and reasons that carry their numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.planning.matrix import MATRIX, Conditions, match
from agent.planning.memory import Estimate, estimate
from agent.planning.methods import FOUR_BIT, METHODS, MIN_PACKED_NUMEL, UnknownMethodError, compute_dtype, method
from agent.planning.model_types import MODEL_TYPES, named, names
from agent.planning.plan import LADDER, Budget, plan, size

MIB, GIB = 2**20, 2**30
MILLION = 1_048_576
ORIN = Budget(4 * GIB, 512 * MIB, "meminfo", 8 * GIB, has_gpu=True, is_integrated=True, capability=(8, 7))
CLOUD = Budget(20 * GIB, 512 * MIB, "nvml", 24 * GIB, has_gpu=True, capability=(8, 9))
PASCAL = Budget(6 * GIB, 512 * MIB, "nvml", 8 * GIB, has_gpu=True, capability=(6, 1))
CPU = Budget(4 * GIB, 512 * MIB, "meminfo", 8 * GIB)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("nf4", 4.5), ("fp4", 4.5), ("nf4-dq", 4.126953125), ("fp4-dq", 4.126953125), ("int8", 8.5), ("fp16", 16.0)],
)
def test_the_bits_of_a_weight_at_blocksize_64(name: str, bits: float) -> None:
    assert method(name).bits_per_weight(64) == bits


@pytest.mark.parametrize(
    ("name", "numel", "expected"),
    [
        ("nf4", 4096, 2048 + 64 * 4),
        ("nf4", 4097, 2049 + 65 * 4),
        ("nf4-dq", 4096, 2048 + 64 + 4 + 4),
        ("nf4-dq", 64 * 257, 64 * 257 // 2 + 257 + 2 * 4 + 4),
        ("int8", 4096, 4096 + 64 * 4),
        ("fp16", 5, 10),
        ("fp32", 5, 20),
    ],
)
def test_the_bytes_of_a_tensor_are_exact(name: str, numel: int, expected: int) -> None:
    assert method(name).tensor_bytes(numel) == expected


def test_small_tensors_stay_as_they_are() -> None:
    packed, plain = MIN_PACKED_NUMEL, MIN_PACKED_NUMEL - 1
    assert estimate([packed, plain], method("nf4")) == Estimate(2048 + 256 + 4 * plain, 4 * packed)
    assert estimate([plain], method("nf4")) == Estimate(4 * plain, 0)
    assert estimate([plain], method("fp16")) == Estimate(2 * plain, 4 * plain)
    assert estimate([], method("nf4")).total_bytes == 0


def test_an_unknown_method_answers_with_the_known_ones() -> None:
    with pytest.raises(UnknownMethodError, match=r"int3.*nf4-dq"):
        method("int3")
    with pytest.raises(UnknownMethodError):
        plan([MILLION], CPU, requested="int3")


def test_the_four_bit_methods_are_the_ladder() -> None:
    assert set(FOUR_BIT) == set(LADDER)
    assert len({item.file_tag for item in METHODS.values()}) == len(METHODS)


DEVICES = {
    "extreme-constraints": (replace(ORIN, limit_bytes=2 * MIB), [1_500_000], "fp4-dq"),
    "older-gpu": (PASCAL, [MILLION], "fp4"),
    "cloud-gpu": (CLOUD, [400 * MILLION], "nf4"),
    "edge-limited-memory": (replace(ORIN, limit_bytes=20 * MIB), [MILLION], "nf4-dq"),
    "edge": (ORIN, [MILLION], "nf4"),
}


@pytest.mark.parametrize("scenario", DEVICES)
def test_each_row_of_the_matrix_is_some_device(scenario: str) -> None:
    budget, numels, expected = DEVICES[scenario]
    budget = replace(budget, limit_bytes=8 * MIB) if scenario == "extreme-constraints" else budget
    made = plan(numels, budget)

    assert made.row.scenario == scenario
    assert made.row.method == expected
    assert made.chosen is not None
    assert made.chosen.method == expected
    assert made.reason.startswith(f"{scenario}: {made.row.rationale}; needs ")


def test_every_row_is_shown_by_a_device() -> None:
    assert [row.scenario for row in MATRIX] == list(DEVICES)


@pytest.mark.parametrize(
    ("changes", "scenario"),
    [
        ({"share": 0.5}, "extreme-constraints"),
        ({"share": 0.4999}, "edge-limited-memory"),
        ({"share": 0.1}, "edge-limited-memory"),
        ({"share": 0.0999}, "edge"),
        ({"capability": (7, 4)}, "older-gpu"),
        ({"capability": (7, 5)}, "edge"),
        ({"is_integrated": False, "total_bytes": 16 * GIB}, "cloud-gpu"),
        ({"is_integrated": False, "total_bytes": 16 * GIB - 1}, "edge"),
        ({"total_bytes": 64 * GIB}, "edge"),
    ],
)
def test_a_row_begins_exactly_at_its_bound(changes: dict[str, object], scenario: str) -> None:
    device = replace(Conditions(True, True, (8, 7), 8 * GIB, 0.05), **changes)  # type: ignore[arg-type] # noqa: FBT003 - a table
    assert match(device).scenario == scenario


def test_a_matrix_without_a_last_row_says_so() -> None:
    with pytest.raises(LookupError, match="no row"):
        match(Conditions(False, False, None, GIB, 0.01), MATRIX[:1])  # noqa: FBT003 - a device in one line


def test_a_rule_is_a_sentence_with_its_numbers() -> None:
    assert [row.rule() for row in MATRIX] == [
        "the model takes at least 50% of the budget",
        "compute capability below 7.5",
        "a dedicated GPU and at least 16 GiB of device memory",
        "the model takes at least 10% of the budget",
        "no earlier row applies",
    ]


def test_a_refusal_names_need_budget_reserve_and_source() -> None:
    made = plan([100 * MILLION], replace(ORIN, available_bytes=900 * MIB))
    assert made.chosen is None
    assert made.reason == (
        "fp4-dq needs 452 MiB, budget 388 MiB of 900 MiB available according to meminfo, reserve 512 MiB"
    )
    assert made.to_json()["admission"] == "refuse"
    assert made.to_json()["method"] is None


def test_a_limit_of_the_configuration_is_named() -> None:
    made = plan([100 * MILLION], replace(ORIN, limit_bytes=64 * MIB))
    assert "limited to 64.0 MiB by configuration" in made.reason


def test_a_method_that_was_asked_for_is_the_only_candidate() -> None:
    made = plan([MILLION], ORIN, requested="int8")
    assert [item.method for item in made.candidates] == ["int8"]
    assert made.reason == "int8 was asked for and fits: needs 5.1 MiB of 3.5 GiB"


def test_a_method_that_fails_its_self_test_gives_way_to_the_next_smaller_one() -> None:
    made = plan([MILLION], ORIN, usable={"fp4"})
    assert made.chosen is not None
    assert made.chosen.method == "fp4"
    assert "asks for nf4, which failed the self-test on this device; fp4 needs" in made.reason
    assert made.candidates[0].why == "failed the self-test on this device"


def test_the_decision_record_can_be_read_back() -> None:
    record = plan([MILLION], ORIN).to_json()
    assert record["budget"] == {
        "bytes": 4 * GIB - 512 * MIB,
        "available_bytes": 4 * GIB,
        "reserve_bytes": 512 * MIB,
        "limit_bytes": None,
        "total_bytes": 8 * GIB,
        "source": "meminfo",
    }
    assert [item["method"] for item in record["candidates"]] == list(LADDER)
    assert record["candidates"][0]["estimated_bytes"] == MILLION // 2 + MILLION // 64 * 4 + 4 * MILLION


def test_a_budget_below_its_reserve_is_nothing() -> None:
    assert replace(ORIN, available_bytes=MIB).bytes == 0
    assert plan([MILLION], replace(ORIN, available_bytes=0)).row.scenario == "extreme-constraints"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (150 * 1024, "150 KiB"),
        (412 * MIB, "412 MiB"),
        (3 * GIB, "3.0 GiB"),
    ],
)
def test_a_size_is_written_for_people(count: int, words: str) -> None:
    assert size(count) == words


def test_a_model_type_is_found_by_its_names() -> None:
    assert names() == tuple(MODEL_TYPES)
    assert named("cnn") == ("cnn",)
    assert named("basic_rnn") == ("rnn",)
    assert named("radical_rnn") == ("rnn-radical", "radical-rnn")
    assert named("resnet") == ()


@pytest.mark.parametrize(
    ("device", "capability", "dtype"),
    [("cpu", None, "float32"), ("cuda", (8, 7), "bfloat16"), ("cuda", (7, 5), "float16"), ("cuda", None, "float16")],
)
def test_weights_are_multiplied_in_the_widest_dtype_that_is_fast_on_the_device(
    device: str, capability: tuple[int, int] | None, dtype: str
) -> None:
    assert compute_dtype(device, capability) == dtype


def test_only_4_bit_methods_ask_for_a_foreign_kernel() -> None:
    assert {name for name, method in METHODS.items() if method.kernel == "bitsandbytes"} == set(FOUR_BIT)


def test_auto_names_what_to_build_next_if_the_gate_refuses_and_only_what_fits() -> None:
    numels = [2**20]
    roomy = plan(numels, Budget(2**30, 0, "meminfo", 2**30))
    assert [candidate.method for candidate in roomy.fallbacks] == ["int8", "fp16"]
    narrow = plan(numels, Budget(estimate(numels, method("int8")).total_bytes, 0, "meminfo", 2**30))
    assert narrow.chosen is not None
    assert "fp16" not in [candidate.method for candidate in narrow.fallbacks]
    assert plan(numels, Budget(2**30, 0, "meminfo", 2**30), requested="nf4").fallbacks == ()
