"""Quantizing a checkpoint into an artifact, one tensor at a time.

The model is built without memory, its layers are swapped for packed ones, and then every tensor goes from the mapped
checkpoint through a chunk-wise packer to its place in the artifact. At no time is more in memory than one packed
tensor and the transient of one chunk; the checkpoint's pages belong to the page cache.

Weights are checked for NaN and infinity before they are packed. Nothing is judged here: how good the result is, the
gate measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agent.planning.methods import MIN_PACKED_NUMEL
from agent.quantization import codebooks, modules, packed
from agent.quantization.errors import NonFiniteWeightsError
from agent.quantization.kernels import CHUNK_NUMEL
from agent.quantization.packed import PackedTensor
from agent.quantization.swap import pack_layers
from agent.quantization.tensor_file import TensorFileWriter

if TYPE_CHECKING:
    from pathlib import Path

    from agent.architectures import Recognised
    from agent.planning.methods import Method
    from agent.quantization.assignment import Scheme
    from agent.quantization.checkpoint import Checkpoint, Entry

Progress = Callable[[int, int], None]
"""Called with the number of tensors done and their total."""


@dataclass(frozen=True)
class Skipped:
    """A weight that stayed as it was."""

    name: str
    numel: int
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of the weights.

    Attributes:
        source_tensor_bytes: bytes of the used tensors as the checkpoint holds them.
        coverage: share of the float parameters and buffers that is now codes (or half floats).
        skipped: what is not, largest first.
        methods: how each packed weight is stored, by name.
    """

    source_tensor_bytes: int
    coverage: float
    skipped: tuple[Skipped, ...]
    methods: Mapping[str, Method]


def quantize(
    checkpoint: Checkpoint,
    found: Recognised,
    path: Path,
    scheme: Scheme,
    *,
    blocksize: int,
    progress: Progress,
    device: str = "cpu",
) -> Outcome:
    """Write the artifact of ``checkpoint`` to ``path``.

    Each weight that is packed visits ``device`` alone, so a GPU needs room for the largest one only.

    Raises:
        NonFiniteWeightsError: a weight is NaN or infinite, or becomes so in the method's format.
    """
    model = packed_empty(found, scheme, blocksize)
    kinds = weights(model)
    books = codebooks.of_methods(scheme.methods)
    with TensorFileWriter(path, contents(model, books), _metadata(found, scheme, blocksize)) as file:
        for name, book in books.items():
            file.write(name, book)
        for done, (name, kind) in enumerate(kinds.items(), start=1):
            _write_weight(file, name, kind, checkpoint.entries[name], device)
            progress(done, len(kinds))
    return _outcome(kinds, checkpoint, scheme.base)


def packed_empty(found: Recognised, scheme: Scheme, blocksize: int) -> nn.Module:
    """Return the packed model without memory: what an artifact of ``scheme`` is loaded into."""
    model = modules.build_empty(found.model_type, found.num_classes, found.options)
    return pack_layers(model, scheme.assignment(model), blocksize)


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor that is not packed as models hold it: floats as float32, the rest unchanged."""
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def source_model(checkpoint: Checkpoint, found: Recognised) -> nn.Module:
    """Return the model at source precision; float32 weights stay in the mapped file."""
    model = modules.build_empty(found.model_type, found.num_classes, found.options)
    for name, names in modules.slots(model).items():
        modules.assign(model, names, plain(checkpoint.entries[name].read()))
    modules.compute_missing(model, found.model_type, found.num_classes, found.options)
    return model


def weights(model: nn.Module) -> dict[str, PackedTensor | Tensor]:
    """Return every weight under the name that the checkpoint has for it, packed or as it is."""
    tensors = model.state_dict(keep_vars=True)
    kinds: dict[str, PackedTensor | Tensor] = {}
    for name in modules.slots(model):
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if isinstance(owner, PackedTensor):
            kinds[path] = owner
        else:
            kinds[name] = tensors[name]
            assert leaf, "a state dict has no nameless tensors"  # noqa: S101 - a broken plug-in
    return kinds


def contents(model: nn.Module, books: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return name, shape and dtype of everything that the artifact of a packed model holds."""
    tensors = model.state_dict(keep_vars=True)
    held = {name: (tuple(book.shape), book.dtype) for name, book in books.items()}
    return held | {name: (tuple(tensors[name].shape), tensors[name].dtype) for name in modules.slots(model)}


def _metadata(found: Recognised, scheme: Scheme, blocksize: int) -> dict[str, str]:
    return {
        "format": "nibbled",
        "model_type": found.model_type,
        "num_classes": str(found.num_classes),
        "method": scheme.name,
        "blocksize": str(blocksize),
    }


def _write_weight(file: TensorFileWriter, name: str, kind: PackedTensor | Tensor, entry: Entry, device: str) -> None:
    tensor = entry.read()
    _require_finite(name, tensor)
    if not isinstance(kind, PackedTensor):
        file.write(name, plain(tensor))
        return
    for part, value in packed.pack(tensor.to(device), kind.method, kind.blocksize).items():
        if part == "values":
            _require_finite(name, value, f" in {kind.method.name}, whose largest value is 65504")
        file.write(f"{name}.{part}", value)


def _require_finite(name: str, tensor: Tensor, where: str = "") -> None:
    if not tensor.is_floating_point():
        return
    flat = tensor.reshape(-1)
    bad = 0
    for start in range(0, flat.numel(), CHUNK_NUMEL):
        chunk = flat[start : start + CHUNK_NUMEL].float()
        bad += chunk.numel() - int(torch.isfinite(chunk).sum())
    if bad:
        raise NonFiniteWeightsError(
            f"{bad} of the {flat.numel()} weights of {name!r} are NaN or infinite{where}",
            "take an earlier epoch of the training" if not where else "choose another method",
        )


def _outcome(kinds: Mapping[str, PackedTensor | Tensor], checkpoint: Checkpoint, method: Method) -> Outcome:
    floats = {name: kind for name, kind in kinds.items() if isinstance(kind, PackedTensor) or kind.is_floating_point()}
    plain_ones = {name: kind for name, kind in floats.items() if not isinstance(kind, PackedTensor)}
    total = sum(_numel(kind) for kind in floats.values())
    kept = sum(_numel(kind) for kind in plain_ones.values())
    skipped = [Skipped(name, kind.numel(), _reason(name, kind, method)) for name, kind in plain_ones.items()]
    skipped.sort(key=lambda item: (-item.numel, item.name))
    used = sum(checkpoint.entries[name].stored_bytes for name in kinds)
    methods = {name: kind.method for name, kind in floats.items() if isinstance(kind, PackedTensor)}
    return Outcome(used, (total - kept) / total if total else 0.0, tuple(skipped), methods)


def _numel(kind: PackedTensor | Tensor) -> int:
    return kind.numel if isinstance(kind, PackedTensor) else kind.numel()


def _reason(name: str, tensor: Tensor, method: Method) -> str:
    if method.bits == 32:  # noqa: PLR2004 - float32
        return "fp32 keeps every weight"
    if tensor.dim() < 2:  # noqa: PLR2004 - a vector
        return "a vector: biases, norms and statistics stay float32"
    if tensor.numel() < MIN_PACKED_NUMEL:
        return f"fewer than {MIN_PACKED_NUMEL} weights"
    leaf = name.rpartition(".")[2]
    return f"no packed form for the layer of {leaf!r}"


def describe(skipped: tuple[Skipped, ...]) -> list[dict[str, Any]]:
    """Return the skipped weights as JSON objects, largest first."""
    return [{"name": item.name, "numel": item.numel, "reason": item.reason} for item in skipped]
