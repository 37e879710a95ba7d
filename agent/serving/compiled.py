"""A model through torch's compiler: one program for a single row, and one or two for all other sizes. Imports torch.

The compiler writes C++ for a CPU and Triton for a GPU, so the device needs a C++ compiler. It takes a core for many
seconds, and memory that stays; so it is asked only where both are to be had, and for a bounded time. Requests are never
compiled for: a size that was not foreseen is computed by the model's own code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import _dynamo as dynamo
from torch._inductor import config as inductor

from agent.serving.acceleration import DeclinedError, within
from agent.serving.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.serving.network import TorchNetwork

    Call = Callable[..., Any]

LIMIT_S = 120.0
"""The supervisor waits five minutes for a load, which is more than this."""
NEEDED_BYTES = 640 << 20
"""Measured for the types built in: up to 110 MB that stay with this process, and 520 MB in the C++ compiler."""


class CompiledWay:
    """The model as its compiler made it.

    Args:
        network: the model.
        rows: of the largest batch.
    """

    name = "compile"

    def __init__(self, network: TorchNetwork, rows: int) -> None:
        self._network = network
        self._rows = rows
        self._own = self._made = network.call

    def begin(self) -> None:
        """Compile for all sizes, within ``LIMIT_S``."""
        if available_bytes() // 2 < NEEDED_BYTES:
            raise DeclinedError(
                f"the compiler needs {NEEDED_BYTES:,} bytes, {available_bytes():,} are free, half of them for it"
            )
        inductor.compile_threads = 1  # in this process: workers of its own would outlive a server that is killed
        torch.compiler.set_stance("default")
        compiled = torch.compile(self._network.module, fullgraph=True)
        try:
            within(LIMIT_S, lambda: self._warm(compiled))
        finally:
            torch.compiler.set_stance("eager_on_recompile")
        self._made = compiled

    def change(self) -> None:
        """Call what was compiled."""
        self._network.change(self._made)

    def end(self) -> None:
        """Call what was called before."""
        self._network.change(self._own)

    def _warm(self, compiled: Call) -> None:
        with torch.inference_mode():
            for given in self._network.batches(self._rows):
                for tensor, varying in zip(given, self._network.varying, strict=True):
                    rows = [0] if tensor.shape[0] > 1 else []
                    for dimension in (*rows, *varying):
                        dynamo.mark_dynamic(tensor, dimension)
                compiled(*given)
