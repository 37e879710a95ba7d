"""Errors after which this process is of no use: its context on the device is gone, or the allocator below it is.

CUDA calls such errors sticky: every later call of the process returns them again, whatever it does ("CUDA Runtime API",
error codes 700 and its like: "to continue using CUDA, the process must be terminated and relaunched"). On Tegra boards
NvMap and the allocator's bookkeeping fail in a way that lasts until the process ends, too, while an allocation that is
merely too large can be answered with "send fewer rows". Pure.
"""

from __future__ import annotations

from agent.exhaustion import TEGRA_TEXTS, says

STICKY_TEXTS = (
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "the launch timed out and was terminated",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "operation not supported on global/shared address space",
    "uncorrectable ECC error",
)
LOST_STATUS = 70
"""How the process ends then: ``EX_SOFTWARE`` of ``sysexits.h``; the supervisor starts the next one at once."""


def is_lost(error: BaseException) -> bool:
    """Return whether ``error``, or one that it was raised from, says that nothing more can be computed here."""
    seen: BaseException | None = error
    while seen is not None:
        if says(seen, STICKY_TEXTS) or says(seen, TEGRA_TEXTS):
            return True
        seen = seen.__cause__
    return False
