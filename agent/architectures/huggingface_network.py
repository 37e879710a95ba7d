"""Networks of the package ``transformers``: tensors in, one tensor out.

Rules:
* Parameters are float32, whatever dtype a checkpoint has; what becomes of them is the quantizer's to say.
* A network's tensors lie under ``network.``; `stored_names` says where a checkpoint has each of them.
* Nothing is generated: a language model answers with the logits of one token.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.architectures.errors import UnrecognisedCheckpointError
from agent.architectures.huggingface_config import EMBEDDING, PURPOSE, Task, class_name, configuration, library
from agent.architectures.optional import MissingPackageError, require

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PREFIX = "network."


def create(config: Mapping[str, Any], task: Task) -> Any:
    """Return the library's own module, with fresh weights or none on the meta device.

    Raises:
        UnrecognisedCheckpointError: the library cannot build it.
    """
    made = configuration(config)
    kind = getattr(library(), class_name(config))
    # An embedding is pooled here; the library's own pooler would be held and never read.
    extra = {"add_pooling_layer": False} if task is EMBEDDING and _can_leave_out_pooler(kind) else {}
    try:
        network = kind(made, **extra)
    except MissingPackageError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UnrecognisedCheckpointError(f"transformers cannot build {kind.__name__}: {reason}") from error
    return network


def stored_names(config: Mapping[str, Any], task: Task, stored: Iterable[str]) -> dict[str, str]:
    """Return each name of the network's tensors, under ``network.``, with the name that the checkpoint has for it.

    Older names are brought up to date as the library does it, a base model's prefix is added or taken away, and tied
    tensors are under all their names. Tensors that the network has no place for are under what their name became.

    Raises:
        UnrecognisedCheckpointError: a tensor would have to be joined, split or turned to fit.
    """
    with torch.device("meta"):
        network = create(config, task)
    held = network.state_dict(keep_vars=True)
    found = {f"{PREFIX}{new}": old for old, new in _present_names(network, held, stored)}
    by_identity: dict[int, list[str]] = {}
    for name, tensor in held.items():
        by_identity.setdefault(id(tensor), []).append(f"{PREFIX}{name}")
    for names in by_identity.values():
        source = next((found[name] for name in names if name in found), None)
        if source is not None:
            found |= dict.fromkeys((name for name in names if name not in found), source)
    return found


def _present_names(network: Any, held: Mapping[str, Any], stored: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield stored names with the library's present ones, by its rules (``transformers/core_model_loading.py``)."""
    loading = require("transformers.core_model_loading", "transformers", PURPOSE)
    mapping = require("transformers.conversion_mapping", "transformers", PURPOSE)
    steps = mapping.get_model_conversion_mapping(network)
    renamings = [step for step in steps if isinstance(step, loading.WeightRenaming)]
    converters = [step for step in steps if isinstance(step, loading.WeightConverter)]
    prefix = network.base_model_prefix or None
    for name in sorted(stored, key=loading.dot_natural_key):  # some renamings want layers in order
        renamed, converter = loading.rename_source_key(name, renamings, converters, prefix, held)
        if renamed not in held and name in held:
            renamed, converter = name, None
        if converter is not None and renamed in held:
            raise UnrecognisedCheckpointError(
                f"tensor {name!r} has the form of an older transformers, to be rearranged into {renamed!r}: "
                "load and save the checkpoint with the present one"
            )
        yield name, renamed


class Classifier(nn.Module):
    """Image classification: ``(batch, channels, height, width)`` pixels to ``(batch, classes)`` logits."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(pixel_values=pixels).logits
        return logits


class TextClassifier(nn.Module):
    """Text classification: ``(batch, time)`` ids and mask to ``(batch, classes)`` logits."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(input_ids=ids, attention_mask=mask).logits
        return logits


class NextToken(nn.Module):
    """Causal language model: ``(batch, time)`` ids and mask to the ``(batch, vocabulary)`` logits of what follows.

    Texts are padded on the right; what follows is that which comes after a text's last valid id.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        last = (mask.sum(dim=1) - 1).clamp(min=0).reshape(-1, 1, 1).expand(-1, 1, logits.shape[2])
        return logits.gather(1, last).squeeze(1)


class Embedder(nn.Module):
    """Sentence embedding: ``(batch, time)`` ids and mask to ``(batch, width)`` vectors.

    Args:
        network: the base encoder.
        pooling: ``mean`` of the valid steps, or ``cls`` for the first step.
        is_normalised: whether vectors have length 1.
    """

    def __init__(self, network: Any, pooling: str, *, is_normalised: bool) -> None:
        super().__init__()
        self.network = network
        self._pooling = pooling
        self._is_normalised = is_normalised

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the vectors."""
        steps: Tensor = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(2).to(steps.dtype)
        valid = weights.sum(dim=1).clamp(min=1.0)
        pooled = steps[:, 0] if self._pooling == "cls" else (steps * weights).sum(dim=1) / valid
        return functional.normalize(pooled, dim=1) if self._is_normalised else pooled


def _can_leave_out_pooler(kind: type) -> bool:
    return "add_pooling_layer" in inspect.signature(kind).parameters
