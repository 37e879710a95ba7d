"""Finding the state dict in what a checkpoint holds, and undoing what wrappers and trainers did to its keys.

Nothing is guessed: what is not a map of tensors by the end is refused with the keys that were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agent.quantization.errors import BadCheckpointError

UNSHAPED = ("num_heads",)
"""Options that no tensor shape tells and that a training's configuration does."""
CONTAINERS = ("model_state_dict", "model_state", "state_dict", "model")
"""Keys under which training loops keep the weights; the first two are those of the guide's project."""
PREFIXES = ("module.", "_orig_mod.")
"""Left by DataParallel and torch.compile; stripped while every key has one."""

_PACKED = "._packed_params._packed_params"
_PACKED_DTYPE = "._packed_params.dtype"


def state_dict_of(loaded: Any) -> tuple[dict[str, Any], str | None]:
    """Return the state dict in a loaded checkpoint and the model type that the file names, if any.

    Raises:
        BadCheckpointError: there is none; it lists the top-level keys or names the type.
    """
    if not isinstance(loaded, Mapping):
        raise BadCheckpointError(
            f"the file holds a {type(loaded).__name__}, not a state dict", "save model.state_dict() instead"
        )
    for key in CONTAINERS:
        inner = loaded.get(key)
        if isinstance(inner, Mapping) and _is_state_dict(inner):
            hint = loaded.get("model_type")
            return dict(inner), hint if isinstance(hint, str) else None
    if _is_state_dict(loaded):
        return dict(loaded), None
    keys = ", ".join(repr(key) for key in list(loaded)[:12]) or "none"
    raise BadCheckpointError(
        f"no state dict among its top-level keys: {keys}",
        f"save model.state_dict() itself, or under {', '.join(map(repr, CONTAINERS))}",
    )


def told(loaded: Any) -> dict[str, Any]:
    """Return what a file says beside its weights and no tensor shape tells: ``num_heads`` of its config."""
    config = loaded.get("config") if isinstance(loaded, Mapping) else None
    return {name: config[name] for name in UNSHAPED if name in config} if isinstance(config, Mapping) else {}


def strip_prefixes(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``entries`` without the wrappers' prefixes, nested ones too."""
    result = dict(entries)
    while result:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in result)), None)
        if prefix is None:
            break
        result = {key[len(prefix) :]: value for key, value in result.items()}
    return result


def undo_int8(entries: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Replace the entries of torch's INT8 modules by quantized weights and biases under their float names.

    Dynamic quantization turns a Linear ``X`` into ``X.scale``, ``X.zero_point`` and packed parameters; static
    quantization keeps ``X.weight`` as a quantized tensor. The weights stay quantized here: whoever reads one
    dequantizes it then.

    Returns:
        The entries and how many weights were INT8.
    """
    quantized = {key.removesuffix(_PACKED) for key in entries if key.endswith(_PACKED)}
    quantized |= {
        key.removesuffix(".weight")
        for key, value in entries.items()
        if key.endswith(".weight") and isinstance(value, Tensor) and value.is_quantized
    }
    dropped = {f"{name}{suffix}" for name in quantized for suffix in (".scale", ".zero_point", _PACKED_DTYPE)}
    result: dict[str, Any] = {}
    for key, value in entries.items():
        if key.endswith(_PACKED):
            weight, bias = value
            name = key.removesuffix(_PACKED)
            result[f"{name}.weight"] = weight
            if bias is not None:
                result[f"{name}.bias"] = bias
        elif key not in dropped:
            result[key] = value
    return result, len(quantized)


def _is_state_dict(entries: Mapping[Any, Any]) -> bool:
    return bool(entries) and all(isinstance(k, str) and _is_entry(k, v) for k, v in entries.items())


def _is_entry(key: str, value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if key.endswith(_PACKED_DTYPE):
        return isinstance(value, torch.dtype)
    if not key.endswith(_PACKED):
        return False
    is_pair = isinstance(value, tuple) and len(value) == 2  # noqa: PLR2004 - weight and bias
    return is_pair and isinstance(value[0], Tensor) and (value[1] is None or isinstance(value[1], Tensor))
