"""Whatever ended a job, as one of the builder's errors."""

from __future__ import annotations

import errno

from agent import architectures
from agent.exhaustion import is_out_of_memory
from agent.quantization.artifact import ArtifactError
from agent.quantization.errors import (
    BadCheckpointError,
    BuildError,
    InsufficientDiskError,
    InsufficientMemoryError,
    ModelTypeError,
)

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def translate(error: Exception) -> BuildError:
    """Return ``error`` as the builder reports it."""
    if isinstance(error, BuildError):
        return error
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, architectures.ArchitectureError):
        return ModelTypeError(text, "name the model type, or add it as an entry point nibbled.architectures")
    if isinstance(error, ArtifactError):
        return BadCheckpointError(text, "quantize the checkpoint again")
    if is_out_of_memory(error):
        return InsufficientMemoryError(f"memory ran out: {text or type(error).__name__}", "undeploy another model")
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return InsufficientDiskError(f"the disk is full: {text}", "free space in the state directory")
    return BuildError(f"{type(error).__name__}: {text}", "see the builder's log")
