"""`PackedTensor`: one weight as it lies in memory and in the artifact, and the way back to floats.

Its buffers are its whole state, so ``state_dict`` is the artifact and ``.to(device)`` moves it. What the buffers are
follows from the method alone (`layout`):

========== ===========================================================================================
method     buffers
========== ===========================================================================================
nf4, fp4   ``codes`` uint8, two a byte; ``scales`` float32, one per block
nf4-dq, …  ``codes``; ``scales`` uint8; ``nested_scales`` float32, one per 256 blocks; ``offset`` float32
int8       ``codes`` int8, symmetric and linear; ``scales`` float32
fp16       ``values`` float16
========== ===========================================================================================

Scales never change their dtype: ``.half()`` on a module would otherwise ruin every weight by a thousandth.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agent.planning.methods import NESTED_BLOCKSIZE
from agent.quantization import kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.planning.methods import Method

MARKERS = ("codes", "values")
"""Buffers of which every packed tensor has exactly one; how an artifact's keys tell packed tensors from plain ones."""


def layout(method: Method, shape: tuple[int, ...], blocksize: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of each buffer of a packed tensor."""
    if not method.is_blockwise:
        return {"values": (shape, torch.float16)}
    numel = prod(shape)
    blocks = -(-numel // blocksize)
    if method.quant_type is None:
        return {"codes": ((numel,), torch.int8), "scales": ((blocks,), torch.float32)}
    codes = ((-(-numel // 2),), torch.uint8)
    if not method.double_quant:
        return {"codes": codes, "scales": ((blocks,), torch.float32)}
    return {
        "codes": codes,
        "scales": ((blocks,), torch.uint8),
        "nested_scales": ((-(-blocks // NESTED_BLOCKSIZE),), torch.float32),
        "offset": ((1,), torch.float32),
    }


def pack(weights: Tensor, method: Method, blocksize: int) -> dict[str, Tensor]:
    """Return the buffers for ``weights``, contiguous and of any float dtype."""
    if not method.is_blockwise:
        return {"values": weights.to(torch.float16)}
    flat = weights.reshape(-1)
    if method.quant_type is None:
        codes, scales = kernels.pack_8bit(flat, blocksize)
        return {"codes": codes, "scales": scales}
    codes, scales = kernels.pack_4bit(flat, method.quant_type, blocksize)
    if not method.double_quant:
        return {"codes": codes, "scales": scales}
    quantized, nested, offset = kernels.pack_scales(scales)
    return {"codes": codes, "scales": quantized, "nested_scales": nested, "offset": offset}


class PackedTensor(nn.Module):
    """A weight of ``shape``, stored by ``method``; made on the meta device and filled by ``load_state_dict``.

    Attributes:
        shape: of the weight itself.
        method, blocksize: how it is stored.
    """

    def __init__(self, shape: tuple[int, ...], method: Method, blocksize: int) -> None:
        super().__init__()
        self.shape = shape
        self.method = method
        self.blocksize = blocksize
        for name, (size, dtype) in layout(method, shape, blocksize).items():
            self.register_buffer(name, torch.empty(size, dtype=dtype, device="meta"))
        self._kept: Tensor | None = None

    def keep(self, dtype: torch.dtype) -> None:
        """Unpack the weight once, and answer with it from now on; nobody may write to it."""
        self._kept = None
        self._kept = self.unpack(dtype)

    def drop(self) -> None:
        """Let go of what ``keep`` unpacked."""
        self._kept = None

    @property
    def kept(self) -> Tensor | None:
        """What ``keep`` unpacked, if it did."""
        return self._kept

    @property
    def numel(self) -> int:
        """How many weights this stands for."""
        return prod(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """What it unpacks to by default: networks of other libraries ask their weights for it."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return next(self.buffers()).device

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight with ``shape`` and ``dtype``: a new tensor, or what is kept."""
        if self._kept is not None:
            return self._kept.to(dtype)
        if not self.method.is_blockwise:
            return self._tensor("values").to(dtype)
        return self._unpack(self._tensor("codes"), self.float_scales(), self.numel).view(self.shape).to(dtype)

    @property
    def has_whole_rows(self) -> bool:
        """Whether no block of a matrix spans two rows, so that rows can be unpacked alone."""
        return not self.method.is_blockwise or self.shape[1] % self.blocksize == 0

    def unpack_rows(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the rows of a matrix: ``rows`` is ``(n,) int64``, the result ``(n, columns)``.

        Only these rows are unpacked where rows are whole blocks; else the matrix is, for a moment.
        """
        if self._kept is not None or not self.has_whole_rows:
            return self.unpack(dtype)[rows]
        return self._unpack_some(rows, self.float_scales(), dtype)

    def unpack_in_steps(self, step: int, dtype: torch.dtype = torch.float32) -> Iterator[tuple[int, Tensor]]:
        """Yield a matrix that ``has_whole_rows`` as ``(first row, (up to step, columns))``, one piece at a time."""
        scales = self.float_scales()
        for start in range(0, self.shape[0], step):
            yield start, self._unpack_some(slice(start, start + step), scales, dtype)

    def _unpack_some(self, rows: Tensor | slice, scales: Tensor, dtype: torch.dtype) -> Tensor:
        if not self.method.is_blockwise:
            return self._tensor("values")[rows].to(dtype)
        codes = self._tensor("codes").view(self.shape[0], -1)[rows].reshape(-1)
        chosen = scales.view(self.shape[0], -1)[rows].reshape(-1)
        return self._unpack(codes, chosen, chosen.numel() * self.blocksize).view(-1, self.shape[1]).to(dtype)

    def float_scales(self) -> Tensor:
        """Return the ``(blocks,) float32`` scales; none for fp16."""
        if not self.method.is_blockwise:
            return torch.empty(0)
        if not self.method.double_quant:
            return self._tensor("scales")
        return kernels.unpack_scales(self._tensor("scales"), self._tensor("nested_scales"), self._tensor("offset"))

    def quant_state(self) -> Any:
        """Return bitsandbytes' view of a 4-bit tensor; it shares every buffer and copies none."""
        quant_type = self.method.quant_type
        assert quant_type is not None, "only 4-bit tensors have a quant state"  # noqa: S101 - a caller's mistake
        nested = (self._tensor("nested_scales"), self._tensor("offset")) if self.method.double_quant else None
        return kernels.quant_state(self._tensor("scales"), self.shape, quant_type, self.blocksize, nested)

    def _unpack(self, codes: Tensor, scales: Tensor, numel: int) -> Tensor:
        if self.method.quant_type is None:
            return kernels.unpack_8bit(codes, scales, self.blocksize)
        return kernels.unpack_4bit(codes, scales, self.method.quant_type, self.blocksize, numel)

    def _tensor(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # noqa: FBT001, FBT002 - torch's own signature
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]  # torch's gap

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"shape={self.shape}, method={self.method.name}, blocksize={self.blocksize}"
