"""Artifacts to networks. Imports torch, and everything that does, on first use.

The process can already answer health checks while those imports take their seconds. Nothing is unpickled here: an
artifact is a safetensors file with a JSON sidecar.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from agent.serving.errors import LoadFailedError
from agent.serving.memory import is_out_of_memory

if TYPE_CHECKING:
    from pathlib import Path

    from agent.serving.slots import Network

TORCH_SIDE = "agent.serving.network"


class TorchLoader:
    """Loads artifacts onto one device.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for the GPU if there is one.
        threads: how many threads torch uses for one operation.
    """

    def __init__(self, device: str, threads: int) -> None:
        self._device = device
        self._threads = threads

    def prepare(self) -> None:
        """Import torch and the artifact reader, and fix the number of threads before any of them starts."""
        _torch_side().configure(self._threads)

    def load(self, artifact: Path) -> Network:
        """Load an artifact onto the device; raises ``LoadFailedError``."""
        try:
            network: Network = _torch_side().load(artifact, self._device)
        except Exception as error:
            raise explain(error) from error
        return network

    def release_memory(self) -> None:
        """Give memory that nothing uses any more back to the system."""
        _torch_side().release_memory()


def explain(error: Exception) -> LoadFailedError:
    """Return what a failed load is called on the wire."""
    text = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return LoadFailedError("insufficient_memory", text)
    # A file that is missing, cut short, inconsistent or of a type that is not known; anything else is a fault here.
    is_bad = isinstance(error, (OSError, ValueError, LookupError, TypeError, EOFError)) or "safetensors" in text.lower()
    return LoadFailedError("bad_artifact" if is_bad else "internal", text)


def _torch_side() -> Any:
    return importlib.import_module(TORCH_SIDE)
