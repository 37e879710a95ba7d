"""A forward pass as a recorded graph.

On a CPU a pass takes the interpreter's lock before each of its operators, and on a busy server waits for it each time;
recorded as a TorchScript graph it is one call that leaves the lock to the event loop.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Inputs = Callable[[int], Sequence[torch.Tensor]]

RECORD_BELOW_S = 0.02
"""One row that takes longer has operators beside which the lock is nothing."""
RECORDED_ROWS, PROVED_ROWS = 2, (1, 3, 8)


def record(module: Any, inputs: Inputs, *, row_s: float) -> tuple[Any, str]:
    """Return ``module`` as a recorded graph and why that is good, or as it is and why not.

    A graph is used only if recording it had nothing to warn of (control flow or shapes that depend on the inputs) and
    its answers equal the module's for other inputs and other numbers of rows.

    Args:
        module: takes tensors, returns one or several, or a mapping of names to them.
        inputs: makes as many rows of them.
        row_s: what one row takes, in seconds.
    """
    if any(tensor.is_cuda for tensor in inputs(1)):
        return module, "recorded on CPUs only"
    if row_s > RECORD_BELOW_S:
        return module, f"a row takes {row_s * 1e3:.0f} ms, beside which the lock is nothing"
    try:
        graph = _graph(module, inputs(RECORDED_ROWS))
        with torch.inference_mode():
            same = all(_alike(graph(*given), module(*given)) for given in map(inputs, PROVED_ROWS))
    except Exception as error:  # noqa: BLE001 - whatever TorchScript does not know, the module itself goes on
        return module, f"cannot be recorded: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
    return (graph, "recorded: it answers alike") if same else (module, "as recorded it answers otherwise")


def _graph(module: Any, given: Sequence[torch.Tensor]) -> Any:
    # Outside of inference mode, whose tensors a graph cannot keep.
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        graph = torch.jit.trace(module, tuple(given), check_trace=False, strict=False)  # type: ignore[no-untyped-call]
    doubts = [each for each in said if issubclass(each.category, torch.jit.TracerWarning)]  # type: ignore[attr-defined]
    if doubts:
        raise ValueError(str(doubts[0].message))
    return graph


def _alike(one: Any, other: Any) -> bool:
    if isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and one.shape == other.shape and torch.allclose(one, other, equal_nan=True)
    if isinstance(other, dict):
        return list(one) == list(other) and all(_alike(one[name], other[name]) for name in other)
    return len(one) == len(other) and all(map(_alike, one, other))
