"""The table of quantization methods: names, formats and exact sizes.

Pure arithmetic, no torch: the supervisor plans with it, the builder builds by it, so an estimate and a finished
artifact come from one place.

Sizes follow bitsandbytes' storage of a 4-bit tensor (``bitsandbytes/functional.py``, ``quantize_4bit``): two codes a
byte, one ``absmax`` scale per block of ``blocksize`` weights; with double quantization (QLoRA, arXiv 2305.14314,
section 3) the scales are themselves stored as 8-bit codes in blocks of 256 with one float scale each and one float
offset. The codebooks are constants that an artifact holds once, not per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DEFAULT_BLOCKSIZE = 64
NESTED_BLOCKSIZE = 256
"""Block length of the second quantization; fixed in bitsandbytes (``quantize_4bit``, ``compress_statistics``)."""

MIN_PACKED_NUMEL = 4096
"""Tensors with fewer weights stay as they are: at most 14 KiB each to gain, and they are the most fragile ones
(depthwise kernels, biases, norms)."""


@dataclass(frozen=True)
class Method:
    """How a heavy weight is stored.

    Attributes:
        name: the name on the wire, e.g. ``nf4-dq``.
        bits: bits of one stored code: 4, 8, 16 or 32.
        quant_type: bitsandbytes' codebook for 4-bit methods, else None.
        double_quant: whether the per-block scales are quantized too.
        file_tag: the part of an artifact's file name that names the method, as the guide spells it.
    """

    name: str
    bits: Literal[4, 8, 16, 32]
    quant_type: Literal["nf4", "fp4"] | None
    double_quant: bool
    file_tag: str

    @property
    def is_blockwise(self) -> bool:
        """Whether weights are stored as codes with per-block scales."""
        return self.bits < 16  # noqa: PLR2004 - 16 and 32 are plain floats

    @property
    def kernel(self) -> str:
        """Which library's arithmetic serves the method where it works; torch alone is the fallback for all."""
        return "bitsandbytes" if self.quant_type else "torch"

    def bits_per_weight(self, blocksize: int = DEFAULT_BLOCKSIZE) -> float:
        """Stored bits per weight of a large tensor: 4.5 for nf4, 4.127 for nf4-dq at blocksize 64."""
        if not self.is_blockwise:
            return float(self.bits)
        if self.double_quant:
            return self.bits + 8 / blocksize + 32 / (NESTED_BLOCKSIZE * blocksize)
        return self.bits + 32 / blocksize

    def tensor_bytes(self, numel: int, blocksize: int = DEFAULT_BLOCKSIZE) -> int:
        """Exact bytes of one packed tensor of ``numel`` weights: codes, scales and, with ``-dq``, their scales."""
        if not self.is_blockwise:
            return numel * self.bits // 8
        codes = -(-numel * self.bits // 8)
        blocks = -(-numel // blocksize)
        if self.double_quant:
            return codes + blocks + 4 * -(-blocks // NESTED_BLOCKSIZE) + 4
        return codes + 4 * blocks


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("nf4", 4, "nf4", double_quant=False, file_tag="4bit_NF4"),
        Method("nf4-dq", 4, "nf4", double_quant=True, file_tag="4bit_NF4_dq"),
        Method("fp4", 4, "fp4", double_quant=False, file_tag="4bit_FP4"),
        Method("fp4-dq", 4, "fp4", double_quant=True, file_tag="4bit_FP4_dq"),
        Method("int8", 8, None, double_quant=False, file_tag="int8"),
        Method("fp16", 16, None, double_quant=False, file_tag="fp16"),
        Method("fp32", 32, None, double_quant=False, file_tag="fp32"),
    )
}
FOUR_BIT = tuple(name for name, method in METHODS.items() if method.bits == 4)  # noqa: PLR2004 - the product's subject

MIXED = "mixed"
"""A 4-bit method with int8 or fp16 for the tensors that need it; no row of the table, which describes one tensor."""
NAMES = (*METHODS, MIXED)
"""What a build can be asked for."""

AMPERE = (8, 0)


def compute_dtype(device_type: str, capability: tuple[int, int] | None = None) -> str:
    """Return the dtype in which unpacked weights are multiplied, the same for every method.

    float32 on a CPU; on a GPU bfloat16 where its tensor cores know it (compute capability 8.0), else float16.
    """
    if device_type != "cuda":
        return "float32"
    return "bfloat16" if capability is not None and capability >= AMPERE else "float16"


class UnknownMethodError(ValueError):
    """A method name that is not in the table."""

    def __init__(self, name: str, known: Iterable[str] = METHODS) -> None:
        super().__init__(f"unknown method {name!r}; known: {', '.join(known)}")
        self.name = name


def method(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        UnknownMethodError: naming the known ones.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise UnknownMethodError(name) from None


def known(name: str) -> str:
    """Return ``name``, that of a method of the table or ``mixed``.

    Raises:
        UnknownMethodError: it is neither; it names the known ones.
    """
    if name not in NAMES:
        raise UnknownMethodError(name, NAMES)
    return name


def file_tag(name: str) -> str:
    """Return the part of an artifact's file name that tells its method.

    Raises:
        UnknownMethodError: there is no such method.
    """
    return MIXED if name == MIXED else method(name).file_tag
