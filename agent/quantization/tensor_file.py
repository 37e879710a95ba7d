"""Writing a safetensors file tensor by tensor, so that a model is never in memory as a whole.

Sizes are known before the first weight is read, so the header goes first, the file gets its full length at once (a
full disk is found out before the work), and each tensor is written at its place when it is ready. Wide dtypes come
first: every tensor is then aligned to its elements without gaps, which the format does not allow.
"""

from __future__ import annotations

import json
import os
import struct
from math import prod
from typing import TYPE_CHECKING

import torch

from agent.failpoints import around
from agent.quantization.safetensors_header import NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor

_ALIGNMENT = 64


class TensorFileWriter:
    """A file of tensors whose shapes and dtypes are given up front; a context manager.

    On leaving, the file is complete and on disk; if an error leaves, it is removed.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        metadata: Mapping[str, str],
    ) -> None:
        ordered = sorted(tensors, key=lambda name: -tensors[name][1].itemsize)
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        self._path = path
        self._tensors = tensors
        self._offsets: dict[str, int] = {}
        end = 0
        for name in ordered:
            shape, dtype = tensors[name]
            self._offsets[name] = end
            end += prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [self._offsets[name], end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNMENT)
        self._head = struct.pack("<Q", len(text)) + text
        self._size = len(self._head) + end

    def __enter__(self) -> TensorFileWriter:  # noqa: PYI034 - typing.Self is younger than Python 3.10
        self._file = self._path.open("wb")
        if self._size:
            os.posix_fallocate(self._file.fileno(), 0, self._size)
        self._file.write(self._head)
        self._unwritten = set(self._tensors)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, each exactly once.

        Raises:
            ValueError: it is unknown, written already, or not of the announced shape and dtype.
        """
        if name not in self._unwritten:
            raise ValueError(f"tensor {name!r} is not to be written (again)")
        announced = self._tensors[name]
        if (tuple(tensor.shape), tensor.dtype) != announced:
            raise ValueError(f"tensor {name!r} is {tuple(tensor.shape)} {tensor.dtype}, announced was {announced}")
        self._file.seek(len(self._head) + self._offsets[name])
        flat = tensor.detach().cpu().contiguous().view(-1)
        if flat.numel():
            self._file.write(flat.view(torch.uint8).numpy().data)
        self._unwritten.remove(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._require_complete()
                self._file.flush()
                with around("artifact.fsync"):
                    os.fsync(self._file.fileno())
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        finally:
            self._file.close()
        if kind is not None:
            self._path.unlink(missing_ok=True)

    def _require_complete(self) -> None:
        if self._unwritten:
            raise ValueError(f"{len(self._unwritten)} tensors were not written: {sorted(self._unwritten)[:5]}")
