"""Which methods work on this device, tried with real tensors.

An import proves nothing: on some boards bitsandbytes loads and its first kernel fails. Each method packs a weight,
unpacks it, multiplies, and is compared with torch's own arithmetic.
"""

from __future__ import annotations

import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from agent.planning.methods import DEFAULT_BLOCKSIZE, Method
from agent.planning.methods import method as find_method
from agent.quantization import kernels, packed
from agent.quantization.layers import PackedLinear, compute_dtype
from agent.quantization.packed import PackedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_INPUTS, _OUTPUTS, _ROWS = 256, 192, 3
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest error of a product relative to its largest value: 256 roundings of the compute dtype, doubled or more."""


def probe(methods: Sequence[str]) -> dict[str, Any]:
    """Return the result event's content: what works, with which kernel, and what the box has."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "methods": {name: _probe_method(name, device) for name in methods},
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "bitsandbytes": version("bitsandbytes"),
        "cuda": _cuda(),
        "cuda_error": _cuda_error(),
    }


def version(package: str) -> str | None:
    """Return a package's installed version, None without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _probe_method(name: str, device: torch.device) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        method = find_method(name)
        kernel = kernels.kernel(device, method.quant_type) if method.quant_type else kernels.Kernel("torch")
        error = _product_error(method, device)
        tolerance = _TOLERANCE[compute_dtype(device)]
    except Exception as failure:  # noqa: BLE001 - a probe reports whatever goes wrong
        return {"ok": False, "kernel": None, "detail": f"{type(failure).__name__}: {failure}", "ms": _ms_since(begin)}
    if error > tolerance:
        detail = f"a product is off by {error:.3g} of its largest value, {tolerance} is allowed"
        return {"ok": False, "kernel": kernel.name, "detail": detail, "ms": _ms_since(begin)}
    return {"ok": True, "kernel": kernel.name, "detail": kernel.detail, "ms": _ms_since(begin)}


def _product_error(method: Method, device: torch.device) -> float:
    """Return how far a packed layer's product is from that of torch's own unpacking, relative to its largest value."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_OUTPUTS, _INPUTS, generator=generator).to(device)
    x = torch.randn(_ROWS, _INPUTS, generator=generator).to(device)
    with torch.inference_mode():
        got, want = _products(weight, x, method)
    return float((got - want).abs().max() / want.abs().max())


def _products(weight: torch.Tensor, x: torch.Tensor, method: Method) -> tuple[torch.Tensor, torch.Tensor]:
    if method.bits == 32:  # noqa: PLR2004 - float32 is stored as it is
        return nn.functional.linear(x, weight), x @ weight.T
    holder = PackedTensor((_OUTPUTS, _INPUTS), method, DEFAULT_BLOCKSIZE)
    for name, part in packed.pack(weight, method, DEFAULT_BLOCKSIZE).items():
        holder.register_buffer(name, part)
    return PackedLinear(holder, None)(x), x @ _reference(holder).T


def _reference(holder: PackedTensor) -> torch.Tensor:
    """Unpack with torch alone."""
    if holder.method.quant_type is None:
        return holder.unpack()
    codes, scales = holder.get_buffer("codes"), holder.float_scales()
    flat = kernels.unpack_4bit_torch(codes, scales, holder.method.quant_type, holder.blocksize, holder.numel)
    return flat.view(holder.shape)


def _cuda() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "is_integrated": bool(getattr(properties, "is_integrated", False)),
        "total_bytes": total,
        "free_bytes": free,
    }


def _cuda_error() -> str | None:
    """Return why there is no CUDA, which ``is_available`` keeps to itself; None where there is."""
    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - whatever it raises is the reason
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _ms_since(begin: float) -> float:
    return round((time.perf_counter() - begin) * 1e3, 3)
