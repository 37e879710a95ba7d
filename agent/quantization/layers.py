"""Layers that keep their weight packed and unpack it for the moment in which it is used.

Rules:
* ``bitsandbytes.nn.Linear4bit`` is not used: on CPUs with AVX512-BF16 its forward pass fails for most shapes and
  rewrites its own state dict. Here a layer's state is what was loaded, whatever has been run.
* Activations keep the dtype in which they came; only inside a layer they are in the compute dtype (`compute_dtype`).
* These layers only infer: nothing here has a gradient.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.planning import methods
from agent.quantization import kernels
from agent.quantization.packed import PackedTensor

Weight = PackedTensor | nn.Parameter
"""A weight of a packed layer: layers with several weights may hold small ones as they are."""

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
UNPACKED_NUMEL, UNPACKED_NUMEL_CPU = 1 << 20, 1 << 19
"""Weights of a Linear that are unpacked at a time: 4 MiB, or 2 MiB on a CPU.

glibc's ``posix_memalign``, which torch allocates with, looks for more than it hands out: a freed block is too small for
the next piece of its own size unless its neighbours are free too. A run leaves up to twenty such blocks in the heap, of
whatever size a piece has. Pieces of 1 MiB leave less, but their many calls cost time; of 1, 2 and 4 MiB, 2 is the
fastest. A GPU has torch's own allocator, and pays for every call.
"""


@cache
def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which unpacked weights are multiplied on ``device``."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    dtype: torch.dtype = getattr(torch, methods.compute_dtype(device.type, capability))
    return dtype


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """Return ``weight`` unpacked, or as it is, in ``dtype``."""
    return weight.unpack(dtype) if isinstance(weight, PackedTensor) else weight.to(dtype)


def cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return an optional bias in ``dtype``."""
    return None if bias is None else bias.to(dtype)


class PackedLinear(nn.Module):
    """``nn.Linear`` with a packed weight.

    Attributes:
        weight: ``(out, in)``, or ``(in, out)`` if ``is_transposed``, as Hugging Face's ``Conv1D`` stores it.
        bias: ``(out,)`` or None.
    """

    def __init__(self, weight: PackedTensor, bias: nn.Parameter | None, *, is_transposed: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.is_transposed = is_transposed
        outputs, inputs = reversed(weight.shape) if is_transposed else weight.shape
        self.in_features = inputs
        self.out_features = outputs
        self._fused: tuple[Tensor, Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias`` for ``x`` of ``(..., in)``."""
        dtype = compute_dtype(x.device)
        if self._is_fused(x.device):
            return self._fused_product(x.to(dtype)).to(x.dtype)
        if self.is_transposed:
            return functional.linear(x.to(dtype), self.weight.unpack(dtype).t(), cast(self.bias, dtype)).to(x.dtype)
        return self._product(x.to(dtype)).to(x.dtype)

    def _product(self, x: Tensor) -> Tensor:
        """Multiply by a few rows of the weight at a time, so that a wide head is never in memory as a whole."""
        bias = cast(self.bias, x.dtype)
        most = UNPACKED_NUMEL_CPU if x.device.type == "cpu" else UNPACKED_NUMEL
        step = max(1, most // self.in_features)
        if step >= self.out_features or not self.weight.has_whole_rows or self.weight.kept is not None:
            return functional.linear(x, self.weight.unpack(x.dtype), bias)
        y = x.new_empty((*x.shape[:-1], self.out_features))
        for start, part in self.weight.unpack_in_steps(step, x.dtype):
            stop = start + part.shape[0]
            y[..., start:stop] = functional.linear(x, part, None if bias is None else bias[start:stop])
            del part  # or it would stay until the next one is unpacked
        return y

    def _is_fused(self, device: torch.device) -> bool:
        quant_type = self.weight.method.quant_type
        # The fused products want rows of whole blocks; other widths are unpacked first.
        if device.type != "cuda" or quant_type is None or self.is_transposed or not self.weight.has_whole_rows:
            return False
        if self.weight.kept is not None:
            return False
        return kernels.kernel(device, quant_type).is_bitsandbytes

    def _fused_product(self, x: Tensor) -> Tensor:
        """Multiply by bitsandbytes' own 4-bit product, which never holds the whole weight for small batches."""
        codes = self.weight.get_buffer("codes")
        if self._fused is None or self._fused[0] is not codes:
            self._fused = (codes, self.weight.quant_state())
        product: Tensor = kernels.bitsandbytes().matmul_4bit(
            x, codes.view(1, -1), bias=cast(self.bias, x.dtype), quant_state=self._fused[1]
        )
        return product

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class PackedConv(nn.Module):
    """``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` with a packed kernel; groups and padding modes included."""

    def __init__(self, weight: PackedTensor, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.weight = weight
        self.bias = conv.bias
        self.stride, self.padding = conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups
        self.padding_mode = conv.padding_mode
        self._margins = conv._reversed_padding_repeated_twice  # noqa: SLF001 - the form that F.pad wants, "same" included

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of ``x``, ``(batch, channels, ...)`` or without the batch axis."""
        dtype = compute_dtype(x.device)
        y, padding = x.to(dtype), self.padding
        if self.padding_mode != "zeros":
            y, padding = functional.pad(y, self._margins, mode=self.padding_mode), (0,) * len(self.stride)
        convolve: Any = _CONVOLUTIONS[len(self.stride)]
        bias = cast(self.bias, dtype)
        y = convolve(y, self.weight.unpack(dtype), bias, self.stride, padding, self.dilation, self.groups)
        result: Tensor = y.to(x.dtype)
        return result


class PackedEmbedding(nn.Module):
    """``nn.Embedding`` with a packed table; only the rows asked for are unpacked where rows are whole blocks."""

    def __init__(self, weight: PackedTensor) -> None:
        super().__init__()
        self.weight = weight
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, ids: Tensor) -> Tensor:
        """Return float32 rows, ``(*ids.shape, embedding_dim)``.

        Raises:
            IndexError: an id is outside the table.
        """
        return self.weight.unpack_rows(ids.reshape(-1)).view(*ids.shape, self.embedding_dim)
