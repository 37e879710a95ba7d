"""Undoing the safetensors exporter of the guide's project, which squeezes two-dimensional weights into bytes.

Two forms, both with one scale for a whole tensor, whatever method the file's name claims:

* int8: ``X`` uint8, ``X_scale`` and ``X_zero``: ``w = q * scale + zero``;
* "4bit": ``X`` uint8 with two columns a byte, the first in the high half, ``X_scale_4bit`` (the range, not divided by
  15) and ``X_min_4bit``: ``w = q / 15 * scale + min``. An odd number of columns is padded by one, which no header
  tells; such a matrix comes out one column too wide and is refused by its shape.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from agent.quantization.checkpoint import Entry

_LEVELS = 15.0
"""Steps between the least and the greatest of sixteen codes."""


def undo_exports(entries: Mapping[str, Entry]) -> tuple[dict[str, Entry], int]:
    """Return the entries with squeezed weights back under float32, and how many those were."""
    result = dict(entries)
    undone = 0
    for name, entry in entries.items():
        if entry.dtype is not torch.uint8 or len(entry.shape) != 2:  # noqa: PLR2004 - matrices only
            continue
        if f"{name}_scale" in entries and f"{name}_zero" in entries:
            scale, low = result.pop(f"{name}_scale"), result.pop(f"{name}_zero")
            result[name] = replace(entry, dtype=torch.float32, read=_Reader(entry, scale, low, is_nibbles=False))
        elif f"{name}_scale_4bit" in entries and f"{name}_min_4bit" in entries:
            scale, low = result.pop(f"{name}_scale_4bit"), result.pop(f"{name}_min_4bit")
            wide = (entry.shape[0], 2 * entry.shape[1])
            reader = _Reader(entry, scale, low, is_nibbles=True)
            result[name] = replace(entry, shape=wide, dtype=torch.float32, read=reader)
        else:
            continue
        undone += 1
    return result, undone


class _Reader:
    """Reads one squeezed weight as float32, when it is called."""

    def __init__(self, codes: Entry, scale: Entry, low: Entry, *, is_nibbles: bool) -> None:
        self._codes, self._scale, self._low = codes, scale, low
        self._is_nibbles = is_nibbles

    def __call__(self) -> Tensor:
        codes = self._codes.read()
        scale, low = (entry.read().to(torch.float32).reshape(()) for entry in (self._scale, self._low))
        if not self._is_nibbles:
            return codes.to(torch.float32) * scale + low
        columns = torch.stack((codes >> 4, codes & 15), dim=2).flatten(1)
        return columns.to(torch.float32) / _LEVELS * scale + low
