"""A forward pass as a recorded graph.

On a CPU a pass takes the interpreter's lock before each of its operators, and on a busy server waits for it each time;
recorded as a TorchScript graph it is one call that leaves the lock to the event loop.

torch has no public way to forget what it compiled; what is done here is what its own tests do between two of them
(``torch/testing/_internal/jit_utils.py``, ``clear_class_registry``). A torch without these names records nothing.
"""
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib
import threading
import warnings
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Inputs = Callable[[int], Sequence[torch.Tensor]]

RECORD_BELOW_S = 0.02
"""One row that takes longer has operators beside which the lock is nothing."""
RECORDED_ROWS, PROVED_ROWS = 2, (1, 3, 8)
_UNIT = threading.Lock()


class Recorded:
    """A module as a graph that can be forgotten.

    TorchScript keeps what it ever compiled, and the weights with it, in one unit for the whole process. This graph has
    a unit of its own, which ``forget`` empties.

    Args:
        module: takes tensors.
        given: inputs to record it with.

    Raises:
        Exception: whatever TorchScript does not know.
        ValueError: recording had something to warn of: control flow or shapes that depend on the inputs.
    """

    def __init__(self, module: Any, given: Sequence[torch.Tensor]) -> None:
        self._unit = torch._C.CompilationUnit()
        try:
            self._graph = self._record(module, given)
        except BaseException:
            self.forget()
            raise

    def __call__(self, *given: torch.Tensor) -> Any:
        """Compute."""
        return self._graph(*given)

    def forget(self) -> None:
        """Let go of the graph and of the weights in it; nothing is computed any more."""
        self._graph = None
        with self._own_unit():
            torch._C._jit_clear_class_registry()
            torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
            torch.jit._state._clear_class_state()

    def _record(self, module: Any, given: Sequence[torch.Tensor]) -> Any:
        # Outside of inference mode, whose tensors a graph cannot keep.
        with self._own_unit(), warnings.catch_warnings(record=True) as said, torch.no_grad():
            warnings.simplefilter("always")
            graph = torch.jit.trace(module, tuple(given), check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        doubts = [each for each in said if issubclass(each.category, torch.jit.TracerWarning)]  # type: ignore[attr-defined]
        if doubts:
            raise ValueError(str(doubts[0].message))
        return graph

    @contextlib.contextmanager
    def _own_unit(self) -> Iterator[None]:
        state: Any = torch.jit._state
        with _UNIT:
            others, state._python_cu = state._python_cu, self._unit
            try:
                yield
            finally:
                state._python_cu = others


def record(module: Any, inputs: Inputs, *, row_s: float) -> tuple[Any, str]:
    """Return ``module`` as a recorded graph and why that is good, or as it is and why not.

    A graph is used only if its answers equal the module's for other inputs and other numbers of rows.

    Args:
        module: takes tensors, returns one or several, or a mapping of names to them.
        inputs: makes as many rows of them.
        row_s: what one row takes, in seconds.
    """
    if any(tensor.is_cuda for tensor in inputs(1)):
        return module, "recorded on CPUs only"
    if row_s > RECORD_BELOW_S:
        return module, f"a row takes {row_s * 1e3:.0f} ms, beside which the lock is nothing"
    graph: Recorded | None = None
    try:
        graph = Recorded(module, inputs(RECORDED_ROWS))
        with torch.inference_mode():
            same = all(_alike(graph(*given), module(*given)) for given in map(inputs, PROVED_ROWS))
    except Exception as error:  # noqa: BLE001 - whatever TorchScript does not know, the module itself goes on
        forget(graph)
        return module, f"cannot be recorded: {shortened((str(error).splitlines() or [type(error).__name__])[0])}"
    if same:
        return graph, "recorded: it answers alike"
    forget(graph)
    return module, "as recorded it answers otherwise"


def shortened(text: str, most: int = 200) -> str:
    """Return ``text`` with at most so many characters: up to the end of a sentence, or with an ellipsis."""
    if len(text) <= most:
        return text
    end = text.rfind(". ", 0, most)
    return text[: end + 1] if end > 0 else text[: most - 1] + "…"


def forget(forward: Any) -> None:
    """Let go of a graph; anything else is left alone."""
    if isinstance(forward, Recorded):
        forward.forget()


def _alike(one: Any, other: Any) -> bool:
    if isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and one.shape == other.shape and torch.allclose(one, other, equal_nan=True)
    if isinstance(other, dict):
        return list(one) == list(other) and all(_alike(one[name], other[name]) for name in other)
    return len(one) == len(other) and all(map(_alike, one, other))
