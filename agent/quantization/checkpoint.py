"""Reading a checkpoint without trusting it: its tensors by name, each read from the mapped file when it is needed.

Rules:
* The format is told by content; a zip's directory and a safetensors header are checked before anything is opened.
* Pickles are opened with ``weights_only=True`` and after their globals were looked at; the file is mapped, so a tensor
  that nobody reads costs no memory. torch before 2.10 has known holes in that mode and is refused pickles.
* Every tensor is checked against its storage before its first element is read.
* Names are as the model has them: wrappers' prefixes are gone, INT8 weights are back under their float names.

What the weights mean is decided elsewhere (``agent.architectures``).
"""

from __future__ import annotations

import mmap
import warnings
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agent.quantization import containers, labels, layouts
from agent.quantization.errors import BadCheckpointError, UnsafeCheckpointError
from agent.quantization.exports import undo_exports
from agent.quantization.safetensors_header import DTYPES, MAX_RANK, MAX_TENSORS, read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent.quantization.safetensors_header import TensorInfo

OLDEST_TORCH_FOR_PICKLES = (2, 10)
"""Before it, ``weights_only=True`` had ways around it (CVE-2025-32434 up to 2.5, memory corruption up to 2.9)."""

_QUANTIZED = frozenset({torch.qint8, torch.quint8})
_READABLE = frozenset(DTYPES.values()) | _QUANTIZED


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint.

    Attributes:
        shape, dtype: as stored; INT8 weights count as float32, which they are read as.
        stored_bytes: bytes in the file.
        read: returns the tensor on the CPU; it may be backed by the mapped file and must not be written to.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored_bytes: int
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        entries: tensors by the model's names.
        file_bytes: size of the file.
        hint: the model type that the file names, or None.
        notes: sentences on what was undone.
        told: what the file says beside its weights and no tensor shape tells.
        labels: what it calls its classes, in order; empty if it does not say.
    """

    entries: Mapping[str, Entry]
    file_bytes: int
    hint: str | None = None
    notes: tuple[str, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by name."""
        return {name: entry.shape for name, entry in self.entries.items()}


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of any supported format.

    Raises:
        UnsafeCheckpointError: it could run code, or deceives.
        BadCheckpointError: it is damaged or holds no state dict.
    """
    try:
        size = path.stat().st_size
        if containers.detect(path) == "safetensors":
            return _open_safetensors(path, size)
        return _open_pickle(path, size)
    except OSError as error:
        raise BadCheckpointError(f"the checkpoint cannot be read: {error.strerror or error}") from error


def safetensors_entries(path: Path, start: int = 0, size: int | None = None) -> dict[str, Entry]:
    """Return the tensors of a safetensors file under the names that it has for them.

    Args:
        path: the file, or an archive with the file in it.
        start: where it begins there.
        size: its bytes; to the end by default.

    Raises:
        UnsafeCheckpointError: it deceives.
        BadCheckpointError: it is damaged or empty.
    """
    header = read_header(path, start, size)
    if not header.tensors:
        raise BadCheckpointError("the file holds no tensors")
    with path.open("rb") as file:
        # A private mapping that nobody writes to: its pages stay the file's.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    data = start + header.data_start
    return {
        name: Entry(info.shape, info.dtype, info.end - info.start, partial(_mapped, mapped, info, data))
        for name, info in header.tensors.items()
    }


def _mapped(data: mmap.mmap, info: TensorInfo, offset: int) -> Tensor:
    if info.start == info.end:
        return torch.empty(info.shape, dtype=info.dtype)
    begin = offset + info.start
    if begin % info.dtype.itemsize:  # in a zip, members lie anywhere
        data, begin = bytearray(data[begin : offset + info.end]), 0  # type: ignore[assignment]  # a buffer too
    return torch.frombuffer(data, dtype=info.dtype, count=prod(info.shape), offset=begin).view(info.shape)


def _open_safetensors(path: Path, size: int) -> Checkpoint:
    restored, count = undo_exports(layouts.strip_prefixes(safetensors_entries(path)))
    notes = (f"{count} weights were 8- or 4-bit exports with one scale each: their rounding remains",) if count else ()
    metadata = read_header(path).metadata
    told = {name: int(metadata[name]) for name in layouts.UNSHAPED if metadata.get(name, "").isdecimal()}
    return Checkpoint(restored, size, metadata.get("model_type"), notes, told, labels.of_metadata(metadata))


def _open_pickle(path: Path, size: int) -> Checkpoint:
    _require_torch(torch.__version__)
    containers.check_archive(path)
    _check_globals(path)
    loaded = _load(path)
    found, hint = layouts.state_dict_of(loaded)
    found, int8_count = layouts.undo_int8(layouts.strip_prefixes(found))
    if len(found) > MAX_TENSORS:
        raise UnsafeCheckpointError(f"the state dict has {len(found)} tensors, at most {MAX_TENSORS} are read")
    notes = (f"{int8_count} weights were INT8 already: their rounding remains",) if int8_count else ()
    entries = {name: _entry(name, tensor) for name, tensor in found.items()}
    return Checkpoint(entries, size, hint, notes, layouts.told(loaded), labels.of_pickle(loaded))


def _require_torch(version: str) -> None:
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < OLDEST_TORCH_FOR_PICKLES:
        raise UnsafeCheckpointError(
            f"torch {version} opens pickles with known holes; {'.'.join(map(str, OLDEST_TORCH_FOR_PICKLES))} is needed",
            "save the checkpoint as safetensors, which needs no unpickling, or update torch",
        )


def _check_globals(path: Path) -> None:
    """Refuse a pickle that names functions or classes outside torch's list of harmless ones."""
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        raise BadCheckpointError(f"its pickle cannot be read: {_first_line(error)}") from error
    if not unsafe:
        return
    hint = "save model.state_dict() alone, in a place where you trust the file"
    if any(name.startswith("torch.nn.modules.") for name in unsafe):
        hint = (
            "files of the guide's rnn script before 2025-11-20 hold whole modules: load the file where you trust it, "
            "and save its model_state_dict alone"
        )
    shown = ", ".join(sorted(unsafe)[:8])
    raise UnsafeCheckpointError(f"its pickle calls for {len(unsafe)} globals that can run code: {shown}", hint)


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        # Typed storages and quantized tensors are deprecated ways to save, not to read.
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise BadCheckpointError(f"torch cannot open it: {_first_line(error)}") from error


def _entry(name: str, tensor: Tensor) -> Entry:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise BadCheckpointError(f"{name!r} is a {type(tensor).__name__}, not a plain tensor")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise BadCheckpointError(f"tensor {name!r} is {tensor.layout} on {tensor.device}, not dense and in the file")
    if tensor.dtype not in _READABLE:
        raise BadCheckpointError(f"tensor {name!r} has dtype {tensor.dtype}; readable are {', '.join(DTYPES)}")
    if tensor.dim() > MAX_RANK:
        raise BadCheckpointError(f"tensor {name!r} has {tensor.dim()} axes, at most {MAX_RANK} are read")
    nbytes = tensor.numel() * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    if nbytes > held:
        raise UnsafeCheckpointError(f"tensor {name!r} claims {nbytes} bytes, its storage has {held}")
    detached = tensor.detach()
    if tensor.dtype in _QUANTIZED:
        return Entry(tuple(tensor.shape), torch.float32, nbytes, detached.dequantize)
    return Entry(tuple(tensor.shape), tensor.dtype, nbytes, lambda: detached)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
