"""What tensors can hold."""

from __future__ import annotations

import numpy as np
import pytest

from agent.serving.tensors import DATATYPES, Tensor, fits_half


@pytest.mark.parametrize(
    ("datatype", "value", "fits"),
    [
        ("FP32", -65504.0, True), ("FP32", 65505.0, False), ("FP64", float("-inf"), False), ("FP16", 65504.0, True),
        ("FP32", float("nan"), False), ("FP16", float("inf"), False), ("INT64", 1 << 40, True),
    ],
)  # fmt: skip
def test_what_fp16_can_hold_is_known(datatype: str, value: float, fits: bool) -> None:  # noqa: FBT001
    assert fits_half(Tensor("x", datatype, np.array([0, value], DATATYPES[datatype]))) is fits


@pytest.mark.parametrize(("bits", "fits"), [(0x477F, True), (0x4780, False), (0x7FC0, False), (0xFF80, False)])
def test_what_fp16_can_hold_is_known_of_a_bf16(bits: int, fits: bool) -> None:  # noqa: FBT001
    assert fits_half(Tensor("x", "BF16", np.array([bits], "<u2"))) is fits
