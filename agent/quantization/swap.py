"""Turning a model on the meta device into its packed form, layer by layer.

Building and loading share this walk, so both arrive at the same module: each brings the assignment that says how a
weight is stored (`assignment`). Shared modules and tied weights stay shared.

A layer is replaced only if its forward pass is torch's own; a subclass that computes something else keeps its weight,
and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from agent.quantization.attention import PackedAttention
from agent.quantization.layers import PackedConv, PackedEmbedding, PackedLinear, Weight
from agent.quantization.packed import PackedTensor
from agent.quantization.recurrent import PackedRecurrent

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.quantization.assignment import Assignment

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def pack_layers(model: nn.Module, assignment: Assignment, blocksize: int) -> nn.Module:
    """Replace every layer whose weight has a method; returns the model, or its replacement if it is itself a layer.

    The replacements hold empty packed tensors on the meta device; weights that stay are the model's own parameters.
    """
    # Fused encoder kernels take weights from layers directly and cannot take packed ones.
    torch.backends.mha.set_fastpath_enabled(value=False)
    swap = _Swap(assignment, blocksize)
    replaced = swap.visit("", model)
    return model if replaced is None else replaced


@dataclass
class _Swap:
    assignment: Assignment
    blocksize: int
    tensors: dict[int, PackedTensor] = field(default_factory=dict)
    modules: dict[int, nn.Module | None] = field(default_factory=dict)

    def visit(self, prefix: str, module: nn.Module) -> nn.Module | None:
        """Return what replaces ``module``; None if it stays, its children changed."""
        if id(module) in self.modules:
            return self.modules[id(module)]
        replacement = self._replace(prefix, module)
        self.modules[id(module)] = replacement
        if replacement is None and not isinstance(module, nn.MultiheadAttention):
            for name, child in list(module.named_children()):
                changed = self.visit(f"{prefix}{name}.", child)
                if changed is not None:
                    setattr(module, name, changed)
        return replacement

    def _replace(self, prefix: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, _RECURRENT) and any(_is_plain(module, kind) for kind in _RECURRENT):
            return self._recurrent(prefix, module)
        if isinstance(module, nn.MultiheadAttention):
            return self._attention(prefix, module) if _is_plain(module, nn.MultiheadAttention) else None
        if not isinstance(getattr(module, "weight", None), nn.Parameter):
            return None
        wrap = _single_weight(module)
        weight = self._weight(prefix, "weight", module.get_parameter("weight")) if wrap else None
        return wrap(weight) if wrap and isinstance(weight, PackedTensor) else None

    def _recurrent(self, prefix: str, module: nn.RNNBase) -> nn.Module | None:
        if module.proj_size:
            return None
        weights = {name: self._weight(prefix, name, value) for name, value in module.named_parameters()}
        if not any(isinstance(weight, PackedTensor) for weight in weights.values()):
            return None
        return PackedRecurrent(module, weights)

    def _attention(self, prefix: str, module: nn.MultiheadAttention) -> nn.Module | None:
        if module.in_proj_weight is None or module.bias_k is not None:
            return None
        in_proj = self._weight(prefix, "in_proj_weight", module.in_proj_weight)
        out_proj = self.visit(f"{prefix}out_proj.", module.out_proj)
        if out_proj is None and not isinstance(in_proj, PackedTensor):
            return None
        return PackedAttention(module, in_proj, module.out_proj if out_proj is None else out_proj)

    def _weight(self, prefix: str, name: str, parameter: nn.Parameter) -> Weight:
        """Return the packed form of a parameter, one for all who share it, or the parameter itself."""
        is_matrix = parameter.dim() > 1
        method = self.assignment(f"{prefix}{name}", parameter.numel()) if is_matrix else None
        if method is None:
            return parameter
        shape = tuple(parameter.shape)
        return self.tensors.setdefault(id(parameter), PackedTensor(shape, method, self.blocksize))


def _single_weight(module: nn.Module) -> Callable[[PackedTensor], nn.Module] | None:
    """Return how to make the packed form of a layer whose only matrix is ``weight``; None for other layers."""
    if isinstance(module, nn.Linear) and _is_plain(module, nn.Linear):
        return lambda weight: PackedLinear(weight, module.bias)
    if _is_transformers_conv1d(module):
        return lambda weight: PackedLinear(weight, module.get_parameter("bias"), is_transposed=True)
    if isinstance(module, _CONVOLUTIONS) and any(_is_plain(module, kind) for kind in _CONVOLUTIONS):
        return lambda weight: PackedConv(weight, module)
    if isinstance(module, nn.Embedding) and _is_plain(module, nn.Embedding) and module.max_norm is None:
        return PackedEmbedding
    return None


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``module`` is of ``kind`` and computes what ``kind`` computes."""
    if not isinstance(module, kind) or type(module).forward is not kind.forward:
        return False
    return getattr(type(module), "_conv_forward", None) is getattr(kind, "_conv_forward", None)


def _is_transformers_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is Hugging Face's transposed Linear, told by name so that nothing is imported."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"
