"""Putting tensors into a model that was built on the meta device, and weighing what a model holds.

Names are those of ``state_dict``; a tensor that several names share is one tensor under its first name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from agent import architectures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def build_empty(model_type: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    """Return an eval module without memory, without the parts that forward never reads."""
    with torch.device("meta"):
        model = architectures.build(model_type, num_classes, **{"inference_only": True, **options})
    return model.eval().requires_grad_(requires_grad=False)


def slots(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return every distinct tensor's first name with all its names, that one included."""
    by_identity: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        by_identity.setdefault(id(tensor), []).append(name)
    return {names[0]: tuple(names) for names in by_identity.values()}


def assign(model: nn.Module, names: Iterable[str], tensor: Tensor) -> None:
    """Put ``tensor`` where ``names`` are, as a parameter or a buffer, whichever the module has there."""
    parameter: nn.Parameter | None = None
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf in owner._parameters:  # noqa: SLF001 - torch offers no public way to tell parameters from buffers by name
            parameter = nn.Parameter(tensor, requires_grad=False) if parameter is None else parameter
            owner.register_parameter(leaf, parameter)
        else:
            owner.register_buffer(leaf, tensor)


def compute_missing(model: nn.Module, model_type: str, num_classes: int, options: Mapping[str, Any]) -> None:
    """Fill buffers that no state dict holds (``persistent=False``) by building the model once more.

    Buffers are computed, weights are allocated first and filled then; so what is only allocated is left on the meta
    device, and the second model takes no memory to speak of. Should a buffer be made that way too, it is built in full.
    """
    missing = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if not missing:
        return
    with _AllocatingNothing():
        built = _built(model_type, num_classes, options)
    if any(built.get_buffer(name).is_meta for name in missing):
        built = _built(model_type, num_classes, options)
    for name in missing:
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path).register_buffer(leaf, built.get_buffer(name), persistent=False)


def _built(model_type: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    return architectures.build(model_type, num_classes, **{"inference_only": True, **options})


class _AllocatingNothing(TorchFunctionMode):
    """Lets ``torch.empty`` give tensors without memory, in this thread alone."""

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, on the meta device if it is ``torch.empty``."""
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


def planned_bytes(model: nn.Module) -> int:
    """Return what ``resident_bytes`` will be of a model that is still without memory."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def resident_bytes(model: nn.Module) -> int:
    """Return the bytes of all distinct storages that a model keeps alive.

    Counted are parameters, buffers (packed codes and scales are buffers), the flat copies that ``nn.LSTM`` keeps, and
    weights that are kept unpacked.
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        tensors += [tensor for tensor in getattr(module, "_flat_weights", ()) if isinstance(tensor, Tensor)]
        tensors += [tensor for tensor in (getattr(module, "kept", None),) if isinstance(tensor, Tensor)]
    storages = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())
