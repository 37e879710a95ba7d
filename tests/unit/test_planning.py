"""Sizes to the byte, one device per row of the matrix, and reasons that carry their numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.planning.budget import Budget, size
from agent.planning.memory import Footprint, estimate
from agent.planning.methods import FOUR_BIT, METHODS, UnknownMethodError, compute_dtype, method
from agent.planning.model_types import MODEL_TYPES, named, names
from agent.planning.plan import LADDER, Policy, plan

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
        "room_bytes": 4 * GIB - 512 * MIB,
        "available_bytes": 4 * GIB,
        "reclaimable_bytes": 0,
        "promised_bytes": 0,
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
    assert [candidate.method for candidate in roomy.fallbacks] == ["mixed", "int8", "fp16"]
    least = estimate(Footprint.of_numels(numels), method("int8")).total_bytes
    narrow = plan(numels, Budget(least, 0, "meminfo", 2**30))
    assert narrow.chosen is not None
    assert "fp16" not in [candidate.method for candidate in narrow.fallbacks]
    assert plan(numels, Budget(2**30, 0, "meminfo", 2**30), requested="nf4").fallbacks == ()


def test_of_several_methods_in_a_row_all_are_measured_whatever_their_size() -> None:
    made = plan([MILLION], ORIN, policy=Policy(purpose="research"))
    assert made.row.scenario == "research"
    assert made.chosen is not None
    assert made.chosen.method == "nf4"
    assert made.alternatives[0].method == "fp4"
    assert made.to_json()["compares"] is True


def test_what_takes_no_more_memory_is_measured_besides() -> None:
    by_prior = {"edge": ["nf4-dq", "fp4", "fp4-dq"], "older-gpu": ["fp4-dq", "nf4-dq", "nf4"]}
    edge, older = plan([MILLION], ORIN), plan([MILLION], PASCAL)
    assert [each.method for each in edge.alternatives] == by_prior["edge"]
    assert [each.method for each in older.alternatives] == by_prior["older-gpu"]


def test_an_alternative_never_takes_more_memory_than_the_choice() -> None:
    made = plan([MILLION], replace(ORIN, limit_bytes=20 * MIB))
    assert made.chosen is not None
    assert made.chosen.method == "nf4-dq"
    assert [each.method for each in made.alternatives] == ["fp4-dq"]


def test_a_matrix_that_is_followed_to_the_letter_leaves_nothing_to_measurement() -> None:
    made = plan([MILLION], ORIN, policy=Policy(matrix_only=True))
    assert (made.candidates, made.alternatives, made.fallbacks) == (made.candidates[:1], (), ())
    tight = plan([100 * MILLION], replace(ORIN, limit_bytes=64 * MIB), policy=Policy(matrix_only=True))
    assert tight.chosen is None
    assert tight.reason.startswith("fp4-dq needs ")


def test_what_does_not_fit_beside_its_old_form_waits_until_that_is_gone() -> None:
    needed = plan([40 * MILLION], ORIN, requested="nf4").candidates[0].estimated_bytes
    there = replace(ORIN, available_bytes=512 * MIB + needed - MIB)
    assert plan([40 * MILLION], there, requested="nf4").admission == "refuse"
    swap = plan([40 * MILLION], replace(there, reclaimable_bytes=2 * MIB), requested="nf4")
    assert swap.admission == "unload_first"
    assert swap.reason.endswith("it does not fit beside its old form, which goes first")
    assert plan([40 * MILLION], replace(there, available_bytes=GIB), requested="nf4").admission == "side_by_side"


def test_a_configured_budget_is_for_all_models_together() -> None:
    budget = replace(ORIN, limit_bytes=20 * MIB, taken_bytes=15 * MIB, reclaimable_bytes=2 * MIB)
    assert (budget.bytes, budget.room_bytes) == (3 * MIB, 5 * MIB)
    assert replace(budget, taken_bytes=30 * MIB).room_bytes == 0


def test_a_mix_needs_its_base_and_int8() -> None:
    made = plan([MILLION], ORIN, requested="mixed")
    assert made.chosen is not None
    assert made.chosen.why.startswith("needs at least ")
    assert plan([MILLION], ORIN, requested="mixed", usable={"nf4-dq"}).chosen is None


def test_the_room_of_a_mix_is_told_only_where_uniform_int8_does_not_fit() -> None:
    assert plan([MILLION], ORIN).mixed_budget_bytes is None
    int8 = estimate(Footprint.of_numels([16 * MILLION]), method("int8"))
    tight = replace(ORIN, available_bytes=512 * MIB + int8.total_bytes - 1, limit_bytes=None)
    room = plan([16 * MILLION], tight).mixed_budget_bytes
    assert room is not None
    assert int8.weights_bytes * 14 / 16 <= room < int8.weights_bytes


def test_the_first_model_on_a_gpu_pays_for_what_cuda_takes() -> None:
    first, next_one = (plan([MILLION], CLOUD, overhead_bytes=taken) for taken in (400 * MIB, 0))
    assert first.candidates[0].estimated_bytes - next_one.candidates[0].estimated_bytes == 400 * MIB
    tight = replace(CLOUD, available_bytes=512 * MIB + 100 * MIB)
    assert plan([MILLION], tight).chosen is not None
    assert plan([MILLION], tight, overhead_bytes=400 * MIB).chosen is None
