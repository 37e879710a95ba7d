"""Blockwise codes: turning weights into them and back, by bitsandbytes where it works, else by torch alone.

Rules:
* Both ways give the same codes and the same float32 weights, bit for bit; only their speed differs.
* bitsandbytes is believed after it has quantized and dequantized a tensor on the very device, not after its import:
  its aarch64 wheels import on a Jetson and fail at the first kernel (bitsandbytes ``docs/source/installation.mdx``).
* No call here may reach the operators that bitsandbytes wraps in ``torch.compile`` (they would start a C++ compiler
  on the device): codes are always handed over as one row of even length, and not at all with blocks of 2048 and more
  on a CPU (``bitsandbytes/backends/cpu/ops.py``).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor

from agent.planning.methods import NESTED_BLOCKSIZE
from agent.quantization import codebooks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.quantization.codebooks import QuantType

CHUNK_NUMEL = 1 << 20
"""Weights quantized at once: a multiple of every blocksize, so chunks change nothing but the memory needed."""

_COMPILED_FROM_BLOCKSIZE = 2048
_choices: dict[tuple[str, QuantType], Kernel] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Kernel:
    """Which implementation serves a device, and why not the other one.

    Attributes:
        name: ``bitsandbytes-cpu``, ``bitsandbytes-cuda`` or ``torch``.
        detail: what was wrong with bitsandbytes, None if it is used.
    """

    name: str
    detail: str | None = None

    @property
    def is_bitsandbytes(self) -> bool:
        """Whether bitsandbytes passed on this device."""
        return self.name != "torch"


def kernel(device: torch.device, quant_type: QuantType) -> Kernel:
    """Return what serves ``device``; tried once per process with a real tensor, then remembered."""
    with _lock:
        key = (device.type, quant_type)
        if key not in _choices:
            _choices[key] = _try_bitsandbytes(device, quant_type)
        return _choices[key]


def pack_4bit(weights: Tensor, quant_type: QuantType, blocksize: int) -> tuple[Tensor, Tensor]:
    """Quantize a flat tensor in chunks.

    Args:
        weights: ``(n,)`` of any float dtype, finite.
        quant_type: the codebook.
        blocksize: weights that share a scale.

    Returns:
        Codes, ``(ceil(n / 2),) uint8`` with the first of two weights in the high half, and scales,
        ``(ceil(n / blocksize),) float32``.
    """
    pack = _pack_bitsandbytes if kernel(weights.device, quant_type).is_bitsandbytes else pack_4bit_torch
    numel = weights.numel()
    codes = torch.empty(-(-numel // 2), dtype=torch.uint8, device=weights.device)
    scales = torch.empty(-(-numel // blocksize), device=weights.device)
    for start in range(0, numel, CHUNK_NUMEL):
        chunk_codes, chunk_scales = pack(weights[start : start + CHUNK_NUMEL].float(), quant_type, blocksize)
        codes[start // 2 :][: chunk_codes.numel()] = chunk_codes
        scales[start // blocksize :][: chunk_scales.numel()] = chunk_scales
    return codes, scales


def unpack_4bit(codes: Tensor, scales: Tensor, quant_type: QuantType, blocksize: int, numel: int) -> Tensor:
    """Return the ``(numel,) float32`` weights that ``codes`` and float32 ``scales`` stand for."""
    choice = kernel(codes.device, quant_type)
    is_compiled = codes.device.type == "cpu" and blocksize >= _COMPILED_FROM_BLOCKSIZE
    if choice.is_bitsandbytes and not is_compiled:
        return _unpack_bitsandbytes(codes, scales, quant_type, blocksize, numel)
    return unpack_4bit_torch(codes, scales, quant_type, blocksize, numel)


def pack_4bit_torch(weights: Tensor, quant_type: QuantType, blocksize: int) -> tuple[Tensor, Tensor]:
    """Quantize ``(n,) float32`` with torch alone, rounding as bitsandbytes' own fallback does."""
    blocks = _blocks(weights, blocksize)
    scales = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / scales.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1).view(-1)
    values = codebooks.four_bit(quant_type, weights.device)
    order = torch.argsort(values)
    midpoints = (values[order[:-1]] + values[order[1:]]) / 2
    codes = order[torch.bucketize(scaled[: weights.numel()], midpoints)].to(torch.uint8)
    codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2), value=_zero_code(quant_type))
    return (codes[::2] << 4) | codes[1::2], scales


def unpack_4bit_torch(codes: Tensor, scales: Tensor, quant_type: QuantType, blocksize: int, numel: int) -> Tensor:
    """As ``unpack_4bit``, with torch alone."""
    pairs = codebooks.byte_pairs(quant_type, codes.device).index_select(0, codes.int())
    values = torch.view_as_real(pairs).view(-1)[:numel]
    return _scale_blocks(values, scales, blocksize)


def pack_scales(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize scales once more (QLoRA, arXiv 2305.14314, section 3).

    Args:
        scales: ``(blocks,) float32``.

    Returns:
        Codes ``(blocks,) uint8``, scales of blocks of 256 ``(ceil(blocks / 256),) float32``, and the offset that was
        taken off first, ``(1,) float32``.
    """
    offset = scales.mean()
    blocks = _blocks(scales - offset, NESTED_BLOCKSIZE)
    nested = blocks.abs().amax(dim=1)
    scaled = (blocks / nested.clamp(min=1e-38).unsqueeze(1)).view(-1)[: scales.numel()]
    book = codebooks.dynamic_8bit(scales.device)
    codes = torch.bucketize(scaled, (book[:-1] + book[1:]) / 2).to(torch.uint8)
    return codes, nested, offset.reshape(1)


def unpack_scales(codes: Tensor, nested: Tensor, offset: Tensor) -> Tensor:
    """Return the ``(blocks,) float32`` scales that ``pack_scales`` packed."""
    values = codebooks.dynamic_8bit(codes.device).index_select(0, codes.int())
    return _scale_blocks(values, nested, NESTED_BLOCKSIZE).add_(offset)


def pack_8bit(weights: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """Quantize ``(n,)`` floats to symmetric linear int8: codes ``(n,) int8``, scales ``(ceil(n / blocksize),)``."""
    blocks = _blocks(weights.float(), blocksize)
    scales = blocks.abs().amax(dim=1) / 127.0
    codes = torch.round(blocks / scales.clamp(min=1e-38).unsqueeze(1)).clamp_(-127, 127)
    return codes.view(-1)[: weights.numel()].to(torch.int8), scales


def unpack_8bit(codes: Tensor, scales: Tensor, blocksize: int) -> Tensor:
    """Return the ``(n,) float32`` weights behind int8 ``codes``."""
    return _scale_blocks(codes.float(), scales, blocksize)


def _blocks(flat: Tensor, blocksize: int) -> Tensor:
    padding = -flat.numel() % blocksize
    if padding:
        flat = torch.nn.functional.pad(flat, (0, padding))
    return flat.reshape(-1, blocksize)


def _scale_blocks(values: Tensor, scales: Tensor, blocksize: int) -> Tensor:
    """Multiply each block of ``values`` by its scale, in place; the last block may be short."""
    full = values.numel() - values.numel() % blocksize
    values[:full].view(-1, blocksize).mul_(scales[: full // blocksize].unsqueeze(1))
    if full < values.numel():
        values[full:].mul_(scales[-1])
    return values


def _zero_code(quant_type: QuantType) -> int:
    return codebooks.NF4.index(0.0) if quant_type == "nf4" else 0


def _pack_bitsandbytes(weights: Tensor, quant_type: QuantType, blocksize: int) -> tuple[Tensor, Tensor]:
    functional = bitsandbytes().functional
    codes, state = functional.quantize_4bit(weights.contiguous(), blocksize=blocksize, quant_type=quant_type)
    return codes.view(-1), state.absmax


def _unpack_bitsandbytes(codes: Tensor, scales: Tensor, quant_type: QuantType, blocksize: int, numel: int) -> Tensor:
    functional = bitsandbytes().functional
    row = quant_state(scales, (1, 2 * codes.numel()), quant_type, blocksize)
    weights: Tensor = functional.dequantize_4bit(codes.view(-1, 1), row)
    return weights.view(-1)[:numel]


def quant_state(
    scales: Tensor,
    shape: tuple[int, ...],
    quant_type: QuantType,
    blocksize: int,
    nested: tuple[Tensor, Tensor] | None = None,
) -> Any:
    """Return bitsandbytes' ``QuantState`` for tensors that stay where they are.

    Args:
        scales: float32, or uint8 codes of scales if ``nested`` is given.
        shape: of the weight.
        quant_type: the codebook.
        blocksize: weights that share a scale.
        nested: scales of the scales and their offset.
    """
    quant_state_type = bitsandbytes().functional.QuantState
    state = {
        "absmax": scales,
        "shape": torch.Size(shape),
        "code": codebooks.four_bit(quant_type, scales.device),
        "blocksize": blocksize,
        "quant_type": quant_type,
        "dtype": torch.float32,
    }
    if nested is not None:
        book = codebooks.dynamic_8bit(scales.device)
        state["offset"] = nested[1].view(())
        state["state2"] = quant_state_type(absmax=nested[0], code=book, blocksize=NESTED_BLOCKSIZE, dtype=torch.float32)
    return quant_state_type(**state)


@cache
def bitsandbytes() -> Any:
    """Import bitsandbytes, which only a packer and its kernels need, and return it.

    bitsandbytes (0.49 and 0.50, ``backends/default/ops.py``) wraps operators with ``torch.compile`` while it is
    imported. That alone imports Dynamo and Inductor, which takes seconds and over 100 MiB, and a call would start a
    C++ compiler: here they stay the plain functions that they are. The kernels that it registers are hidden from Dynamo
    by torch (2.13, ``library.py``), which imports Dynamo for that at their first call, 80 MiB and more than a second:
    nothing packed is ever compiled here, so there is nothing to hide. On CPUs with AVX512-BF16 it would also fetch a
    fused kernel from a hub, by the package ``kernels`` (``backends/cpu/ops.py``): here no code comes from a network,
    and that it warns of the lack is held back; see ``lacks_fused_kernel``.
    """
    logging.getLogger(_held_back.source).addFilter(_held_back)
    hiding = mock.patch.object(torch, "_disable_dynamo", _uncompiled, create=True)
    with mock.patch.object(torch, "compile", _uncompiled), hiding, _not_to_be_found("kernels"):
        return importlib.import_module("bitsandbytes")


def lacks_fused_kernel() -> bool:
    """Return whether bitsandbytes, once imported, does without the fused kernel that it has for this CPU elsewhere."""
    return _held_back.was_said


@contextlib.contextmanager
def _not_to_be_found(package: str) -> Iterator[None]:
    before = sys.modules.pop(package, None)
    sys.modules[package] = None  # type: ignore[assignment]  # what the import system takes for "there is none"
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before


class _HeldBack(logging.Filter):
    """Keeps one warning of a library from the log."""

    source = "bitsandbytes.backends.cpu.ops"
    was_said = False

    def filter(self, record: logging.LogRecord) -> bool:
        is_it = "gemm_4bit_forward" in str(record.msg)
        self.was_said = self.was_said or is_it
        return not is_it


_held_back = _HeldBack()


def _uncompiled(function: Any = None, **_options: Any) -> Any:
    return function if function is not None else lambda wrapped: wrapped


def _try_bitsandbytes(device: torch.device, quant_type: QuantType) -> Kernel:
    """Quantize and dequantize 4,096 weights with bitsandbytes and compare with torch alone."""
    sample = torch.linspace(-1.0, 1.0, 4096, device=device).pow(3)
    try:
        codes, scales = _pack_bitsandbytes(sample, quant_type, 64)
        got = _unpack_bitsandbytes(codes, scales, quant_type, 64, sample.numel())
    except Exception as error:  # noqa: BLE001 - an optional, foreign library: whatever it raises means "do not use"
        return Kernel("torch", f"{type(error).__name__}: {error}".splitlines()[0])
    want = unpack_4bit_torch(codes, scales, quant_type, 64, sample.numel())
    if not torch.allclose(got, want, rtol=1e-5, atol=1e-7):
        worst = (got - want).abs().max().item()
        return Kernel("torch", f"bitsandbytes' weights differ from the format's by up to {worst:.3g}")
    return Kernel(f"bitsandbytes-{device.type}")
