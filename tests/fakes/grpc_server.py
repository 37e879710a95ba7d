"""The server process with models that need no torch: ``python -m tests.fakes.grpc_server --http-fd …``.

``linear`` is the fake network of the other tests; ``image`` takes pictures, as public check scripts send them. A row of
``linear`` whose first number is ``HELD`` is computed when a line arrives at the process's standard input.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agent.serving.__main__ import main
from agent.serving.tensors import TensorSpec
from tests.fakes.serving import FakeLoader, FakeNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.serving.tensors import Array

HELD = -2.0


@dataclass
class Linear(FakeNetwork):
    """Waits when it is told to."""

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        if (arrays[0][:, 0] == HELD).any():
            sys.stdin.readline()
        return super().run(arrays)


class Image(FakeNetwork):
    """Means of an image's channels, ten times each row."""

    def __init__(self) -> None:
        inputs = (TensorSpec("input", "FP32", (-1, 3, 32, 32)),)
        super().__init__(inputs=inputs, outputs=(TensorSpec("output", "FP32", (-1, 10)),))

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        self.calls.append(len(arrays[0]))
        return [np.repeat(arrays[0].mean(axis=(1, 2, 3), keepdims=True).reshape(-1, 1), 10, axis=1)]

    def warm_up(self, rows: int) -> int:
        return rows


if __name__ == "__main__":
    main(loader=FakeLoader(networks={"linear": Linear(), "image": Image()}))
