"""The GPU as NVML tells it: the only place that knows ``pynvml``.

NVML is an optional witness. On a Jetson it is missing, or it answers but knows no memory; a total of zero bytes has
been seen too. Every figure that it does not know is None here, nothing is ever raised, and nobody waits for it longer
than a deadline.

The library stays initialised between looks. An initialised library keeps working after a driver package was upgraded
under it, when a new ``nvmlInit`` fails for versions that do not match, and on a card without persistence mode an
initialisation takes seconds, which a deadline would cut off at every look. The price, a driver that cannot be
unloaded, is paid already by whoever serves from the card. What the library knows is dropped when the driver says that
the card or the session is gone, and in a forked child, where a handle of the parent is worth nothing; the next look
begins anew.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.devices.bounded import DEADLINE_S, OK, Bounded

if TYPE_CHECKING:
    from collections.abc import Callable

ABSENT = "NVML Shared Library Not Found"
"""In the words of ``pynvml``."""
_ENDED = (
    "NVML_ERROR_UNINITIALIZED",
    "NVML_ERROR_DRIVER_NOT_LOADED",
    "NVML_ERROR_GPU_IS_LOST",
    "NVML_ERROR_RESET_REQUIRED",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH",
)
"""Answers that are about the session and not about the figure: no other figure is to be had any more."""


@dataclass(frozen=True)
class Gpu:
    """What NVML says of the first GPU; None is "not known"."""

    name: str | None = None
    capability: tuple[int, int] | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    memory_clock_mhz: int | None = None
    memory_bus_bits: int | None = None
    driver: str | None = None
    used_bytes: int | None = None


class Nvml:
    """NVML, asked with a deadline.

    Args:
        library: something that behaves like ``pynvml``, which is imported where NVML is installed if None is given.
        deadline_s: seconds that a caller waits at most.
    """

    def __init__(self, library: Any = None, *, deadline_s: float = DEADLINE_S) -> None:
        self._library = library
        self._pid: int | None = None
        self._handle: Any = None
        self._bounded = Bounded(self._look, name="nvml", deadline_s=deadline_s)

    def read(self) -> tuple[Gpu | None, str]:
        """Return the first GPU and ``ok``, or None and why: the driver's words, or ``hung``."""
        answer, word = self._bounded.ask()
        return answer or (None, word)

    def _look(self) -> tuple[Gpu | None, str]:
        if self._library is None:
            try:
                self._library = _bindings()
            except OSError:
                return None, ABSENT
        try:
            self._open()
            return _read(self._library, self._handle), OK
        except self._library.NVMLError as error:
            self._close()
            return None, str(error) or type(error).__name__

    def _open(self) -> None:
        if self._pid == os.getpid():
            return
        # In a forked child the parent's session is left as it is: it is not the child's to shut down.
        self._library.nvmlInit()
        self._pid = os.getpid()
        self._handle = self._library.nvmlDeviceGetHandleByIndex(0)

    def _close(self) -> None:
        opened, self._pid, self._handle = self._pid == os.getpid(), None, None
        if opened:
            _ask(self._library, self._library.nvmlShutdown, ended=())


def _bindings() -> Any:
    """Return ``pynvml``, whose 2 MiB are of no use without the library that it binds; raises ``OSError`` then."""
    ctypes.CDLL("libnvidia-ml.so.1")
    import pynvml  # noqa: PLC0415 - see above

    return pynvml


def _read(library: Any, handle: Any) -> Gpu:
    ended = tuple(getattr(library, name) for name in _ENDED)

    def known(question: str, *arguments: Any) -> Any:
        return _ask(library, lambda: getattr(library, question)(*arguments), ended=ended)

    memory = known("nvmlDeviceGetMemoryInfo", handle)
    has_memory = memory is not None and memory.total > 0
    utilisation = known("nvmlDeviceGetUtilizationRates", handle)
    power = known("nvmlDeviceGetPowerUsage", handle)
    capability = known("nvmlDeviceGetCudaComputeCapability", handle)
    return Gpu(
        name=_text(known("nvmlDeviceGetName", handle)),
        capability=(int(capability[0]), int(capability[1])) if capability else None,
        total_bytes=int(memory.total) if has_memory else None,
        free_bytes=int(memory.free) if has_memory else None,
        used_bytes=int(memory.used) if has_memory else None,
        utilisation_percent=None if utilisation is None else int(utilisation.gpu),
        temperature_c=known("nvmlDeviceGetTemperature", handle, library.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else round(power / 1000, 2),
        memory_clock_mhz=known("nvmlDeviceGetMaxClockInfo", handle, library.NVML_CLOCK_MEM) or None,
        memory_bus_bits=known("nvmlDeviceGetMemoryBusWidth", handle) or None,
        driver=_text(known("nvmlSystemGetDriverVersion")),
    )


def _ask(library: Any, question: Callable[[], Any], *, ended: tuple[int, ...]) -> Any:
    """Return an answer, None for a figure that is not known; raise when the session is over."""
    try:
        return question()
    except library.NVMLError as error:
        if error.value in ended:
            raise
        return None
    except (AttributeError, OSError, TypeError, ValueError):
        return None  # a wrapper and a library that do not fit each other


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
