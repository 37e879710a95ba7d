"""How much memory answering takes for a moment, measured: unpacked weights and intermediate results of one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from agent.quantization import gate, process

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


def measure(model: nn.Module, inputs: Mapping[str, Tensor], rows: int, most: int) -> int | None:
    """Return the bytes that one batch of ``rows`` takes over what the model itself holds.

    Where only ``most`` rows may be run together it is told by them and by half of them: what a batch takes grows by the
    row, beside what it takes once. None where the system does not say.
    """
    if rows <= most:
        return _taken(model, inputs, rows)
    full = _taken(model, inputs, most)
    if full is None or most == 1:
        return None if full is None else rows * full
    half = _taken(model, inputs, most // 2)
    return None if half is None else full + round((rows - most) * max(0, full - half) / (most - most // 2))


def _taken(model: nn.Module, inputs: Mapping[str, Tensor], rows: int) -> int | None:
    """Run one batch and return what it took.

    Given rows are repeated to fill the batch. On a GPU torch's allocator is asked, on a CPU the kernel; None where it
    does not say.
    """
    batch = {name: _repeated(tensor, rows) for name, tensor in inputs.items()}
    device = gate.device_of(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        gate.answer(model, batch)
        return torch.cuda.max_memory_allocated(device) - held
    gate.answer(model, batch)  # the first batch of a size makes libraries set up what they keep
    begin = process.begin_peak()
    if begin is None:
        return None
    gate.answer(model, batch)
    return process.end_peak(begin)


def _repeated(tensor: Tensor, rows: int) -> Tensor:
    times = -(-rows // tensor.shape[0])
    return tensor.repeat(times, *(1,) * (tensor.dim() - 1))[:rows]
