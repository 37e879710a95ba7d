"""Artifacts to networks. Imports torch, and everything that does, on first use.

The process can already answer health checks while those imports take their seconds. Nothing is unpickled here: an
artifact is a safetensors file with a JSON sidecar.
"""

from __future__ import annotations

import importlib
import traceback
from typing import TYPE_CHECKING, Any

import structlog

from agent.exhaustion import is_out_of_memory
from agent.serving.errors import LoadFailedError

if TYPE_CHECKING:
    from pathlib import Path

    from agent.serving.slots import Network

log = structlog.get_logger("loader")
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
        self._is_prepared = False

    def prepare(self) -> None:
        """Import torch and the artifact reader, fix the number of threads, and make the device's context."""
        if _torch_side().configure(self._threads, self._device):
            log.info("unfused_kernel", meaning="4-bit weights are unpacked for each product; the answers are the same")
        self._is_prepared = True

    def check(self, artifact: Path) -> None:
        """Read the sidecar and the file's directory; raises ``LoadFailedError``."""
        try:
            _torch_side().check(artifact)
        except Exception as error:
            raise explain(error) from error

    def load(self, artifact: Path, texts_bytes: int | None = None) -> Network:
        """Load an artifact onto the device; raises ``LoadFailedError``."""
        try:
            network: Network = _torch_side().load(artifact, self._device, texts_bytes)
        except Exception as error:
            # The frames of what failed hold what was loaded so far, for as long as the error is known to anybody.
            traceback.clear_frames(error.__traceback__)
            raise explain(error) from error
        return network

    def release_memory(self) -> None:
        """Give memory that nothing uses any more back to the system."""
        _torch_side().release_memory()

    def reset_device_peak(self) -> None:
        """Let the device's peak begin anew."""
        _torch_side().reset_device_peak()

    def device_memory(self) -> dict[str, int] | None:
        """Return the GPU's memory; None without one, and before the imports are done."""
        memory: dict[str, int] | None = _torch_side().device_memory() if self._is_prepared else None
        return memory


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
