"""What the doctor thinks of torch, CUDA and the kernels, from what the builder's probe found. Pure.

The probe quantizes, unpacks and multiplies for real with every method; an import proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.console.check import Check, failed, not_asked, ok, warning
from agent.console.failures import recognise
from agent.planning.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOG = "python -c 'import torch' in the agent's environment says more"


def judge(found: Mapping[str, Any], *, has_gpu: bool) -> list[Check]:
    """Judge what the probe found: torch, CUDA, and each method."""
    return [_torch(found), _cuda(found, has_gpu=has_gpu), *_methods(found, has_gpu=has_gpu)]


def judge_failure(detail: str, hint: str | None) -> list[Check]:
    """Judge a probe that ended without a result: torch could not be loaded, or took the process with it."""
    known = recognise(detail)
    text = f"{detail}: {known.meaning}" if known else detail
    first = failed("torch", text, known.next_step if known else hint or _LOG)
    return [first, *(not_asked(name, "without torch") for name in ("cuda", *map(_name, METHODS)))]


def _name(method: str) -> str:
    return f"method {method}"


def _torch(found: Mapping[str, Any]) -> Check:
    packer = f"bitsandbytes {found['bitsandbytes']}" if found.get("bitsandbytes") else "no bitsandbytes"
    built = f"for CUDA {found['torch_cuda']}" if found.get("torch_cuda") else "without CUDA"
    return ok("torch", f"{found['torch']}, built {built}; {packer}")


def _cuda(found: Mapping[str, Any], *, has_gpu: bool) -> Check:
    cuda = found.get("cuda")
    if cuda is not None:
        shared = ", shares the CPU's memory" if cuda.get("is_integrated") else ""
        return ok("cuda", f"{cuda['name']}, capability {'.'.join(map(str, cuda['capability']))}{shared}")
    reason = found.get("cuda_error") or "torch sees no device"
    if not has_gpu:
        return ok("cuda", "no GPU: models are served by the CPU")
    known = recognise(reason)
    detail = f"the box has a GPU, and torch cannot use it: {reason}"
    if known is not None:
        return failed("cuda", f"{detail}: {known.meaning}", known.next_step)
    return failed("cuda", detail, "see gpu nodes and nvml above; then reinstall the torch for this JetPack or driver")


def _methods(found: Mapping[str, Any], *, has_gpu: bool) -> list[Check]:
    return [_method(name, result, has_gpu=has_gpu) for name, result in found["methods"].items()]


def _method(method: str, result: Mapping[str, Any], *, has_gpu: bool) -> Check:
    name, reason = _name(method), result.get("detail")
    known = recognise(reason)
    text = f"{reason}: {known.meaning}" if known else str(reason)
    if not result["ok"]:
        return failed(name, text, known.next_step if known else "use another method; nibbled methods lists them")
    kernel = f"{result['kernel']}, {result['ms']:.1f} ms"
    if reason is None:
        return ok(name, kernel)
    # The weights are the same without bitsandbytes; only a GPU's fused kernel is missed.
    if known is None and not has_gpu:
        return ok(name, f"{kernel}; {reason}")
    return warning(name, f"{kernel}, in place of bitsandbytes: {text}", known.next_step if known else _LOG)
