"""CUDA graphs without a GPU: what is recorded is repeated on the memory that it was recorded with, and on nothing else.

Stands in for the few names of ``torch.cuda`` that recording takes. Operations really run while they are recorded, as
on a GPU they do not; a graph that was never replayed has answered nothing all the same, since callers read its memory.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


class Graph:
    """A recording."""

    def __init__(self) -> None:
        self.replays = 0
        self._steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        self._steps.append((func, args, kwargs, made))

    def replay(self) -> None:
        self.replays += 1
        with torch.inference_mode():
            for func, args, kwargs, made in self._steps:
                again = func(*args, **kwargs)
                for old, new in zip(_pytree.tree_leaves(made), _pytree.tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's gap
    def __init__(self, graph: Graph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._graph = graph

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        made = func(*args, **(kwargs or {}))
        self._graph.add(func, args, kwargs or {}, made)
        return made


@dataclass
class Device:
    """What was done on the device.

    Attributes:
        graphs: recordings, in order.
        graph_bytes: what each takes.
        modes: of the recordings' ``capture_error_mode``.
        error: raised by the next recording.
    """

    graphs: list[Graph] = field(default_factory=list)
    graph_bytes: int = 1000
    modes: list[str] = field(default_factory=list)
    error: Exception | None = None
    synchronized: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in the place of ``torch.cuda``."""
        device = self

        class Stream:
            def wait_stream(self, _other: Any) -> None:
                return

        @contextmanager
        def stream(_stream: Any) -> Iterator[None]:
            yield

        @contextmanager
        def graph(recording: Graph, *, pool: Any, capture_error_mode: str = "global") -> Iterator[None]:
            assert pool == "the pool"
            device.modes.append(capture_error_mode)
            if device.error is not None:
                raise device.error
            with _Recorder(recording):
                yield
            device.graphs.append(recording)

        def synchronize() -> None:
            device.synchronized += 1

        names = {
            "is_available": lambda: True,
            "Stream": Stream,
            "stream": stream,
            "current_stream": Stream,
            "CUDAGraph": Graph,
            "graph": graph,
            "graph_pool_handle": lambda: "the pool",
            "synchronize": synchronize,
            "memory_reserved": lambda: device.graph_bytes * len(device.graphs),
        }
        for name, fake in names.items():
            monkeypatch.setattr(torch.cuda, name, fake)
