"""Errors that leave a process without its device, told from those that a smaller request can avoid."""

from __future__ import annotations

import pytest

from agent.serving.lost import is_lost

# As torch and the boards word them.
LOST = [
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: misaligned address",
    "CUDA error: uncorrectable ECC error encountered",
    "NvMapMemAllocInternalTagged: 1075072515 error 12",
    'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/opt/pytorch/c10/cuda/CUDACachingAllocator.cpp":838',
]
SURVIVED = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.44 GiB",
    "mat1 and mat2 shapes cannot be multiplied (1x4 and 5x3)",
    "index out of range in self",
    "",
]


@pytest.mark.parametrize("text", LOST)
def test_a_sticky_error_or_a_broken_allocator_ends_the_process(text: str) -> None:
    assert is_lost(RuntimeError(text))


@pytest.mark.parametrize("text", SURVIVED)
def test_what_another_request_can_do_better_does_not(text: str) -> None:
    assert not is_lost(RuntimeError(text))


def test_the_cause_counts_as_well() -> None:
    failed = ValueError("the load failed")
    failed.__cause__ = RuntimeError(LOST[0])
    assert is_lost(failed)
