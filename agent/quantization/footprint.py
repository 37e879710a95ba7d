"""What a model will need in memory, told by its definition: no weight is read and none is allocated.

Weights are exact, since what is packed follows from shapes alone. The peak of intermediate results is found by running
the model on torch's meta device, where tensors have shapes and no memory, and counting what is alive after every
operation. Memory inside an operation (a convolution's scratch, a matrix product's packing) is not seen.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from agent import architectures
from agent.architectures.huggingface import CONFIG
from agent.architectures.huggingface_config import configuration, text_cache
from agent.planning.memory import Footprint
from agent.planning.methods import DEFAULT_BLOCKSIZE, METHODS
from agent.quantization import gate, modules
from agent.quantization.assignment import large_enough
from agent.quantization.attention import PackedAttention
from agent.quantization.huggingface_text import is_language_model
from agent.quantization.layers import UNPACKED_NUMEL_CPU, PackedEmbedding, PackedLinear
from agent.quantization.packed import PackedTensor
from agent.quantization.recurrent import PackedRecurrent
from agent.quantization.swap import pack_layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.architectures import Recognised
    from agent.planning.texts import TextCache

CHUNK_BYTES = 32 << 20
SEEN_TO_TAKEN = 2
"""Memory that intermediate results take over what is seen of them: measured here, docs/decisions.md."""
UNSEEN_FACTOR = 16
"""Where a model cannot be run on the meta device (its forward looks at values): inputs and answers times this."""


def measure(found: Recognised, rows: int) -> tuple[Footprint, list[str]]:
    """Return what a model needs for batches of up to ``rows``, and sentences on what could only be guessed."""
    rows = rows if architectures.is_batchable(found.model_type) else 1
    activation_bytes, notes = _activations(found, rows)
    everything = METHODS["fp16"]  # packs whatever has a packed form, however small
    model = modules.build_empty(found.model_type, found.num_classes, found.options)
    packed = pack_layers(model, large_enough(everything), DEFAULT_BLOCKSIZE)
    holders = {id(module): module for module in packed.modules() if isinstance(module, PackedTensor)}
    return (
        Footprint(
            tuple(sorted((holder.numel for holder in holders.values()), reverse=True)),
            _plain_bytes(packed),
            max(_transients(packed), default=0),
            activation_bytes,
            rows,
            _texts(found),
        ),
        notes,
    )


def chunk_rows(found: Recognised, largest_bytes: int) -> int:
    """Return how many rows a gate may answer together, so that what they need stays small beside the weights.

    Args:
        found: the model.
        largest_bytes: its largest tensor as float32: a build is allowed some of these beside the packed weights.
    """
    if not architectures.is_batchable(found.model_type):
        return 1
    one, _notes = _activations(found, 1)
    allowed = max(CHUNK_BYTES, 2 * largest_bytes)
    return max(1, min(gate.CHUNK_ROWS, allowed // (SEEN_TO_TAKEN * max(1, one))))


def _texts(found: Recognised) -> TextCache | None:
    if not is_language_model(found):
        return None
    return text_cache(configuration(found.options[CONFIG]))


def _plain_bytes(model: nn.Module) -> int:
    """Return the bytes of what is held as it is; floats are held as float32."""
    tensors: dict[int, Tensor] = {}
    for module in model.modules():
        if not isinstance(module, PackedTensor):
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            tensors |= {id(tensor): tensor for tensor in own}
    return sum(t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in tensors.values())


def _transients(model: nn.Module) -> Iterator[int]:
    """Yield how many weights each layer unpacks at one moment; see the layers' own forward passes."""
    for module in model.modules():
        held = [child.numel for child in module.children() if isinstance(child, PackedTensor)]
        if not held:
            continue
        if isinstance(module, PackedLinear) and not module.is_transposed:
            whole_rows = module.in_features % DEFAULT_BLOCKSIZE == 0
            yield min(held[0], max(module.in_features, UNPACKED_NUMEL_CPU)) if whole_rows else held[0]
        elif isinstance(module, PackedEmbedding):
            yield 0 if module.embedding_dim % DEFAULT_BLOCKSIZE == 0 else held[0]
        elif isinstance(module, PackedRecurrent):
            yield -(-sum(held) // module.num_layers)
        elif isinstance(module, PackedAttention):
            yield sum(held) + module.embed_dim**2
        else:
            yield max(held)


def _activations(found: Recognised, rows: int) -> tuple[int, list[str]]:
    inputs = architectures.synthetic_inputs(found.model_type, found.options, rows, 0)
    model = modules.build_empty(found.model_type, found.num_classes, found.options)
    given = sum(tensor.nbytes for tensor in inputs.values())
    alive = _Alive()
    try:
        with torch.inference_mode(), torch.device("meta"), alive:
            model(*(tensor.to("meta") for tensor in inputs.values()))
    except Exception as error:  # noqa: BLE001 - a model's code may raise anything where values are missing
        guess = UNSEEN_FACTOR * (given + 4 * rows * found.num_classes)
        return guess, [f"activations are guessed, the model does not run without values: {type(error).__name__}"]
    return given + alive.peak_bytes, []


@dataclass(eq=False)
class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's gap
    """Counts the storages that operations made and that something still holds."""

    peak_bytes: int = 0
    _bytes: int = 0
    _known: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and look at what it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._bytes += size
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._bytes -= size
