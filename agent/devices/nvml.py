"""The GPU as NVML tells it: the only place that knows ``pynvml``.

NVML is an optional witness. On a Jetson it is missing, or it answers but knows no memory; a total of zero bytes has
been seen too. Every figure that it does not know is None here, and nothing is ever raised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pynvml

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Gpu:
    """What NVML says of the first GPU; None is "not known"."""

    name: str | None
    capability: tuple[int, int] | None
    total_bytes: int | None
    free_bytes: int | None
    utilisation_percent: int | None
    temperature_c: int | None
    power_w: float | None
    driver: str | None


def read(library: Any = pynvml) -> tuple[Gpu | None, str]:
    """Return the first GPU and a word on the answer: ``ok``, or why there is none.

    Args:
        library: the ``pynvml`` module, or something that behaves like it.
    """
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return None, _name(error)
    try:
        handle = library.nvmlDeviceGetHandleByIndex(0)
    except library.NVMLError as error:
        return None, _name(error)
    else:
        return _read(library, handle), "ok"
    finally:
        _ask(library, library.nvmlShutdown)


def _read(library: Any, handle: Any) -> Gpu:
    memory = _ask(library, lambda: library.nvmlDeviceGetMemoryInfo(handle))
    has_memory = memory is not None and memory.total > 0
    utilisation = _ask(library, lambda: library.nvmlDeviceGetUtilizationRates(handle))
    power = _ask(library, lambda: library.nvmlDeviceGetPowerUsage(handle))
    capability = _ask(library, lambda: library.nvmlDeviceGetCudaComputeCapability(handle))
    return Gpu(
        name=_text(_ask(library, lambda: library.nvmlDeviceGetName(handle))),
        capability=(int(capability[0]), int(capability[1])) if capability else None,
        total_bytes=int(memory.total) if has_memory else None,
        free_bytes=int(memory.free) if has_memory else None,
        utilisation_percent=None if utilisation is None else int(utilisation.gpu),
        temperature_c=_ask(library, lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)),
        power_w=None if power is None else round(power / 1000, 2),
        driver=_text(_ask(library, library.nvmlSystemGetDriverVersion)),
    )


def _ask(library: Any, question: Callable[[], Any]) -> Any:
    try:
        return question()
    except library.NVMLError:
        return None


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _name(error: Exception) -> str:
    return str(error) or type(error).__name__
