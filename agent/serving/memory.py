"""What memory this process has, and the wordings in which it runs out. Linux; no torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

# How running out of memory reads: CUDA's allocator, the CPU's, and NvMap on Jetson boards, where the allocator's own
# bookkeeping fails first ("NVML_SUCCESS == r INTERNAL ASSERT FAILED") because their NVML knows no device memory.
OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "NVML_SUCCESS == r",
    "NvMap",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STATM = Path("/proc/self/statm")
CLEAR_REFS = Path("/proc/self/clear_refs")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says, in any of the known wordings, that memory ran out."""
    text = str(error)
    return isinstance(error, MemoryError) or any(known.lower() in text.lower() for known in OUT_OF_MEMORY_TEXTS)


def rss_bytes() -> int:
    """Return the resident set of this process: second field of ``/proc/self/statm``, proc(5)."""
    return int(STATM.read_text().split()[1]) * PAGE_BYTES


def reset_peak_rss() -> bool:
    """Let the high-water mark of the resident set begin anew; return whether the system permits that.

    Value 5 of ``/proc/self/clear_refs``, proc(5).
    """
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5", encoding="ascii")
        return True
    return False


def trim_heap() -> None:
    """Return free pages of the C heap to the system where the C library can (glibc: malloc_trim(3))."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
