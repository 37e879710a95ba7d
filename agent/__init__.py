"""nibbled: a deployment agent that serves PyTorch checkpoints at 4 bits on edge GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.quantization.artifact import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``agent.load`` when it is first used: the supervisor imports this package and must never import torch."""
    if name == "load":
        from agent.quantization.artifact import load  # noqa: PLC0415 - see above

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
