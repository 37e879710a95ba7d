"""The constants behind the codes: what the sixteen 4-bit values and the 256 values of a quantized scale stand for.

They are properties of a format, so an artifact holds each once and a process shares one tensor per device.

* NF4: quantiles of a normal distribution, QLoRA (arXiv 2305.14314), appendix E.
* FP4: one sign, two exponent and one mantissa bit, divided by the largest magnitude, in the order of the bit
  patterns (bitsandbytes ``functional.py``, ``get_4bit_type``).
* Dynamic 8 bit: a decimal exponent of variable length, then a linear fraction, "8-bit Optimizers via Block-wise
  Quantization" (arXiv 2110.02861), section 2.1; double quantization stores scales with it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.planning.methods import Method

QuantType = Literal["nf4", "fp4"]

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, -0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0)
PREFIX = "nibbled.codebook."
"""How an artifact calls its codebooks; no module of a model is called so."""

_EXPONENTS = 7
"""Decades that the dynamic 8-bit format covers: 1e-6 to 1."""


@cache
def four_bit(quant_type: QuantType, device: torch.device) -> Tensor:
    """Return the sixteen values, ``(16,) float32``, by code."""
    if quant_type == "nf4":
        return torch.tensor(NF4, device=device)
    return torch.tensor(_FP4_TWELFTHS, device=device) / 12.0


@cache
def byte_pairs(quant_type: QuantType, device: torch.device) -> Tensor:
    """Return both values of every packed byte, ``(256,) complex64``: high half first.

    A pair as one complex number makes unpacking a single gather of eight bytes instead of two of four.
    """
    values = four_bit(quant_type, device)
    byte = torch.arange(256, device=device)
    return torch.view_as_complex(torch.stack((values[byte >> 4], values[byte & 15]), dim=-1))


@cache
def dynamic_8bit(device: torch.device) -> Tensor:
    """Return the 256 values of a quantized scale, ``(256,) float32`` ascending, 0 and 1 included."""
    values = [0.0, 1.0]
    for exponent in range(_EXPONENTS):
        edges = torch.linspace(0.1, 1.0, 2**exponent + 1, dtype=torch.float32, device="cpu")
        means = (edges[:-1] + edges[1:]) / 2.0
        scaled = (10.0 ** (exponent - _EXPONENTS + 1)) * means
        values += scaled.tolist()
        values += (-scaled).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


def of_methods(methods: Iterable[Method]) -> dict[str, Tensor]:
    """Return the codebooks of methods under their names in an artifact, on the CPU."""
    cpu = torch.device("cpu")
    books = {}
    for method in methods:
        if method.quant_type is not None:
            books[f"{PREFIX}{method.quant_type}"] = four_bit(method.quant_type, cpu)
        if method.double_quant:
            books[f"{PREFIX}scales"] = dynamic_8bit(cpu)
    return books
