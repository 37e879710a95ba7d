"""The server process with models that need no torch: ``python -m tests.fakes.grpc_server --http-fd …``.

``linear`` is the fake network of the other tests; ``image`` takes what the protocol's public check scripts send; ``types``
has an input and an output of every datatype. A row of ``linear`` whose first number is ``SLOW`` takes a moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agent.serving.__main__ import main
from agent.serving.tensors import DATATYPES, TensorSpec
from tests.fakes.serving import FakeLoader, FakeNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.serving.tensors import Array

SLOW = -2.0
SLOW_S = 1.0


@dataclass
class Linear(FakeNetwork):
    """Slow on demand."""

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        if (arrays[0][:, 0] == SLOW).any():
            time.sleep(SLOW_S)
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


class Types(FakeNetwork):
    """Gives back what it is given."""

    def __init__(self) -> None:
        specs = [(f"{name}_in", f"{name}_out", name) for name in DATATYPES]
        super().__init__(
            inputs=tuple(TensorSpec(given, datatype, (-1, 2)) for given, _, datatype in specs),
            outputs=tuple(TensorSpec(answer, datatype, (-1, 2)) for _, answer, datatype in specs),
        )

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        return list(arrays)

    def warm_up(self, rows: int) -> int:
        return rows


if __name__ == "__main__":
    main(loader=FakeLoader(networks={"linear": Linear(), "image": Image(), "types": Types()}))
