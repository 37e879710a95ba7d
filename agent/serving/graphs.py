"""A model as CUDA graphs, one for each of a few sizes of batch: its kernels are launched by one call. Imports torch.

A graph is recorded once and then repeats the same kernels on the same memory. So inputs are copied to where they were
when it was recorded, rows that are missing up to its size are zeros, and answers are read before the next call: the
thread of the model is the only one that calls. What is larger than the largest graph is computed as before. Recording
follows "CUDA semantics, CUDA Graphs" of torch's notes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from agent.serving.acceleration import DeclinedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.serving.network import TorchNetwork

    Call = Callable[..., Any]

WARM_UP_CALLS = 3
"""Before a recording, so that what libraries allocate at first is not part of it."""


class GraphsWay:
    """The model as graphs.

    Args:
        network: the model.
        rows: of the largest batch.
        allowed_bytes: what the graphs may take.
    """

    name = "graphs"

    def __init__(self, network: TorchNetwork, rows: int, allowed_bytes: int) -> None:
        self._network = network
        self._rows = rows
        self._allowed_bytes = allowed_bytes
        self._own = self._made = network.call

    def begin(self) -> None:
        """Record every size, the largest first: the smaller ones use its memory again."""
        if not torch.cuda.is_available():
            raise DeclinedError("graphs are for GPUs")
        if any(self._network.varying):
            raise DeclinedError("the shapes of its inputs vary, and a graph has one")
        torch.cuda.synchronize()
        before = torch.cuda.memory_reserved()
        pool = torch.cuda.graph_pool_handle()
        largest_first = sorted(self._network.batches(self._rows), key=_rows, reverse=True)
        graphs = [_Graph(self._own, given, pool) for given in largest_first]
        held = torch.cuda.memory_reserved() - before
        if held > self._allowed_bytes:
            raise DeclinedError(f"graphs took {held:,} bytes, {self._allowed_bytes:,} are free for them")
        self._made = _Graphs(self._own, graphs)

    def change(self) -> None:
        """Replay the graphs."""
        self._network.change(self._made)

    def end(self) -> None:
        """Call what was recorded; the graphs' memory goes with this object."""
        self._network.change(self._own)


class _Graphs:
    """Calls the smallest graph that has room."""

    def __init__(self, own: Call, graphs: Iterable[_Graph]) -> None:
        self._own = own
        self._graphs = sorted(graphs, key=lambda graph: graph.rows)

    def __call__(self, *given: torch.Tensor) -> Any:
        rows = _rows(given)
        graph = next((graph for graph in self._graphs if graph.rows >= rows), None)
        return self._own(*given) if graph is None else graph(given)


class _Graph:
    """One size of batch.

    Args:
        call: what is recorded.
        given: inputs of that size, whose memory is the graph's from now on.
        pool: the memory that it shares with others, of which only one runs at a time.
    """

    def __init__(self, call: Call, given: Sequence[torch.Tensor], pool: Any) -> None:
        self.rows = _rows(given)
        self._inputs = [tensor.clone() for tensor in given]
        with torch.inference_mode():
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's gap
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_CALLS):
                    call(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # Other models compute meanwhile, in threads of their own; by default their allocations would be errors.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self._answer = call(*self._inputs)

    def __call__(self, given: Sequence[torch.Tensor]) -> Any:
        rows = _rows(given)
        for place, tensor in zip(self._inputs, given, strict=True):
            place[:rows].copy_(tensor)
            if rows < self.rows:
                place[rows:].zero_()
        self._graph.replay()
        return _first(self._answer, rows)


def _rows(given: Sequence[torch.Tensor]) -> int:
    return int(given[0].shape[0])


def _first(answer: Any, rows: int) -> Any:
    if isinstance(answer, dict):
        return {name: tensor[:rows] for name, tensor in answer.items()}
    if isinstance(answer, (tuple, list)):
        return [tensor[:rows] for tensor in answer]
    return answer[:rows]
