"""An NVML that knows much, little or nothing, fails and hangs on request, and forgets its sessions in a fork."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pynvml

if TYPE_CHECKING:
    import threading

GIB = 2**30
FIGURES = {
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=8 * GIB, free=3 * GIB, used=5 * GIB),
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37),
    "nvmlDeviceGetPowerUsage": 12_345,
    "nvmlDeviceGetCudaComputeCapability": (8, 6),
    "nvmlDeviceGetName": b"NVIDIA RTX A2000",
    "nvmlDeviceGetTemperature": 51,
    "nvmlDeviceGetMaxClockInfo": 6001,
    "nvmlDeviceGetMemoryBusWidth": 192,
    "nvmlSystemGetDriverVersion": "560.35",
}
"""What a dedicated GPU answers."""
NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
UNKNOWN = pynvml.NVML_ERROR_UNKNOWN


def memory(total: int, free: int) -> Any:
    """Return an answer to ``nvmlDeviceGetMemoryInfo``."""
    return SimpleNamespace(total=total, free=free, used=total - free)


class FakeNvml:
    """The ``pynvml`` module as far as the agent uses it, with the real module's errors and constants.

    Args:
        answers: what differs from ``FIGURES``.
        errors: code of the error that a function answers with instead.
        only: when given, every figure that is not named here is not supported.

    Attributes:
        errors: may be changed while it is in use.
        called: the functions that were called, in order.
        blocked: functions that do not return before their event is set.
    """

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_CLOCK_MEM = pynvml.NVML_CLOCK_MEM

    def __init__(
        self,
        answers: dict[str, Any] | None = None,
        errors: dict[str, int] | None = None,
        only: tuple[str, ...] | None = None,
    ) -> None:
        self._answers = {**FIGURES, **(answers or {})}
        self.errors = dict(errors or {})
        if only is not None:
            self.errors.update({name: NOT_SUPPORTED for name in FIGURES if name not in only})
        self.called: list[str] = []
        self.blocked: dict[str, threading.Event] = {}
        self._pid: int | None = None

    def nvmlInit(self) -> None:  # noqa: N802 - the library's spelling
        self._enter("nvmlInit")
        self._pid = os.getpid()

    def nvmlShutdown(self) -> None:  # noqa: N802 - the library's spelling
        self._enter("nvmlShutdown")
        self._need_session()
        self._pid = None

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str, int, int]:  # noqa: N802 - the library's spelling
        self._enter("nvmlDeviceGetHandleByIndex")
        self._need_session()
        return "handle", index, os.getpid()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML_ERROR_"):
            return getattr(pynvml, name)
        if name not in FIGURES:
            raise AttributeError(name)

        def answer(*arguments: object) -> Any:
            self._enter(name)
            self._need_session()
            if arguments and arguments[0] != ("handle", 0, os.getpid()):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
            return self._answers[name]

        return answer

    def count(self, name: str) -> int:
        """Return how often a function was called."""
        return self.called.count(name)

    def _enter(self, name: str) -> None:
        self.called.append(name)
        if name in self.blocked:
            self.blocked[name].wait(30.0)
        if name in self.errors:
            raise pynvml.NVMLError(self.errors[name])

    def _need_session(self) -> None:
        if self._pid != os.getpid():
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)


def absent() -> FakeNvml:
    """Return the library of a box without one: JetPack 4 and 5, a box without a GPU."""
    return FakeNvml(errors={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})
