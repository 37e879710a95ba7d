"""How running out of memory reads, which does not always say so. Pure; no torch.

CUDA's allocator has its words, the CPU's has others. On Jetson boards NvMap gives none, or the allocator's own
bookkeeping fails first ("NVML_SUCCESS == r INTERNAL ASSERT FAILED"), because their NVML knows no device memory; those
two last until the process ends.
"""

from __future__ import annotations

TEGRA_TEXTS = ("NvMapMemAlloc", "NvMapMemHandleAlloc", "NVML_SUCCESS == r")
OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "NvMap",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
    *TEGRA_TEXTS,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says, in any of the known wordings, that memory ran out."""
    return isinstance(error, MemoryError) or says(error, OUT_OF_MEMORY_TEXTS)


def says(error: BaseException, texts: tuple[str, ...]) -> bool:
    """Return whether one of ``texts`` is in the message of ``error``; upper and lower case count alike."""
    message = str(error).lower()
    return any(known.lower() in message for known in texts)
