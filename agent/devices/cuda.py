"""CUDA's own words on the first GPU, asked of the driver without torch: ``python -m agent.devices.cuda``.

Prints one JSON object and exits: ``{"ok": true, ...}`` with None for each figure that is not known, or
``{"ok": false, "reason": ...}``, with ``"absent": true`` where there is no driver or no device at all. It runs in a
process of its own, because a CUDA context costs hundreds of megabytes that only the end of a process gives back, and
because a driver in trouble may end or hang whoever asks.

The free memory of a GPU that shares the CPU's memory is not asked: it takes a context, and the driver counts the page
cache as used there. Names and numbers are those of ``cuda.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import sys
from typing import Any

LIBRARY = "libcuda.so.1"
LIFETIME_S = 30
"""A child whose parent is gone ends itself after this long."""

_MEMORY_CLOCK_KHZ, _BUS_WIDTH_BITS, _INTEGRATED, _MAJOR, _MINOR = 36, 37, 18, 75, 76
"""``CUdevice_attribute``."""


_NO_DEVICE = 100
"""``CUDA_ERROR_NO_DEVICE``."""


class CudaError(Exception):
    """A call of the driver failed; the text names the call and the error."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def ask(library: Any) -> dict[str, Any]:
    """Return what the driver says of its first device; ``reason`` says why there is nothing, or no free memory.

    Args:
        library: ``libcuda``, or something that behaves like it.
    """
    try:
        _call(library, "cuInit", 0)
        device = ctypes.c_int()
        _call(library, "cuDeviceGet", ctypes.byref(device), 0)
    except CudaError as error:
        return {"ok": False, "reason": str(error), "absent": error.status == _NO_DEVICE}
    integrated = _attribute(library, device, _INTEGRATED)
    major, minor = _attribute(library, device, _MAJOR), _attribute(library, device, _MINOR)
    found = {
        "ok": True,
        "name": _name(library, device),
        "capability": None if major is None or minor is None else [major, minor],
        "is_integrated": None if integrated is None else bool(integrated),
        "total_bytes": _total_bytes(library, device),
        "free_bytes": None,
        "memory_clock_khz": _attribute(library, device, _MEMORY_CLOCK_KHZ) or None,
        "memory_bus_bits": _attribute(library, device, _BUS_WIDTH_BITS) or None,
        "reason": None,
    }
    if not integrated:
        try:
            found["free_bytes"] = _free_bytes(library, device)
        except CudaError as error:
            found["reason"] = str(error)
    return found


def main() -> int:
    """Print what the driver says."""
    signal.alarm(LIFETIME_S)
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        answer: dict[str, Any] = {"ok": False, "reason": str(error), "absent": True}
    else:
        answer = ask(library)
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _free_bytes(library: Any, device: ctypes.c_int) -> int:
    """Return what is free, beside the context that has to be made to ask."""
    context = ctypes.c_void_p()
    _call(library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        _call(library, "cuCtxSetCurrent", context)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        _call(library, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value
    finally:
        with contextlib.suppress(CudaError):
            _call(library, "cuDevicePrimaryCtxRelease_v2", device)


def _attribute(library: Any, device: ctypes.c_int, number: int) -> int | None:
    value = ctypes.c_int()
    try:
        _call(library, "cuDeviceGetAttribute", ctypes.byref(value), number, device)
    except CudaError:
        return None
    return value.value


def _total_bytes(library: Any, device: ctypes.c_int) -> int | None:
    total = ctypes.c_size_t()
    try:
        _call(library, "cuDeviceTotalMem_v2", ctypes.byref(total), device)
    except CudaError:
        return None
    return total.value or None


def _name(library: Any, device: ctypes.c_int) -> str | None:
    name = ctypes.create_string_buffer(256)
    try:
        _call(library, "cuDeviceGetName", name, len(name), device)
    except CudaError:
        return None
    return name.value.decode("utf-8", "replace") or None


def _call(library: Any, function: str, *arguments: Any) -> None:
    try:
        status = getattr(library, function)(*arguments)
    except AttributeError:
        raise CudaError(f"{function}: not in this driver") from None
    if status != 0:
        raise CudaError(f"{function}: {_error_name(library, status)}", status)


def _error_name(library: Any, status: int) -> str:
    text = ctypes.c_char_p()
    with contextlib.suppress(AttributeError):
        library.cuGetErrorName(status, ctypes.byref(text))
    return f"{text.value.decode()} ({status})" if text.value else f"error {status}"


if __name__ == "__main__":
    sys.exit(main())
