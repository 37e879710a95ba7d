"""Torch modules behind the server's queue: every model type, joined and alone, and the forms that answers can take."""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from agent import architectures
from agent.serving import network as serving_network
from agent.serving.batcher import Batcher
from agent.serving.errors import BadRequestError, LoadFailedError
from agent.serving.loader import TorchLoader
from agent.serving.network import TorchNetwork
from agent.serving.slots import Slot
from agent.serving.tensors import Tensor
from agent.serving.validation import Question, check_inputs
from tests.fakes.serving import harness, run

if TYPE_CHECKING:
    from agent.serving.tensors import Array

CLASSES = 7
ROWS = 6


@cache
def network_of(model_type: str) -> tuple[TorchNetwork, list[Array]]:
    """Return a randomly initialised model of a type, and inputs of ``ROWS`` rows."""
    torch.manual_seed(0)
    module = architectures.build(model_type, CLASSES)
    examples = architectures.synthetic_inputs(model_type, {}, ROWS, 0)
    inputs = architectures.input_specs(model_type, {})
    sidecar = {
        "model_type": model_type,
        "method": "fp32",
        "inputs": [asdict(spec) for spec in inputs],
        "outputs": [asdict(spec) for spec in architectures.output_specs(model_type, CLASSES)],
        "batchable": architectures.is_batchable(model_type),
    }
    arrays = [examples[spec.name].numpy() for spec in inputs]
    return TorchNetwork(module, sidecar, 0, arrays), arrays


def rows_of(arrays: list[Array], row: int) -> Question:
    return Question(tuple(array[row : row + 1] for array in arrays), 1)


@pytest.mark.parametrize("model_type", architectures.names())
def test_answers_of_joined_requests_equal_those_of_single_ones(model_type: str) -> None:
    async def scenario() -> None:
        network, arrays = network_of(model_type)
        slot = Slot("m", "r1", "1", network)
        batcher = Batcher("m", asyncio.get_running_loop())
        try:
            alone = [await batcher.submit(slot, rows_of(arrays, row)) for row in range(ROWS)]
            before = slot.stats.executions
            joined = await asyncio.gather(*(batcher.submit(slot, rows_of(arrays, row)) for row in range(ROWS)))
        finally:
            batcher.stop()
        for single, one in zip(alone, joined, strict=True):
            for want, got in zip(single.outputs, one.outputs, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        passes = slot.stats.executions - before
        assert passes < ROWS if network.is_batchable else passes == ROWS

    run(scenario)


@pytest.mark.parametrize("model_type", architectures.names())
def test_every_type_answers_with_the_outputs_that_it_declares(model_type: str) -> None:
    network, arrays = network_of(model_type)
    network.warm_up(2)
    read_only = [array.copy() for array in arrays]
    for array in read_only:
        array.flags.writeable = False
    for output, spec in zip(network.run(read_only), network.outputs, strict=True):
        assert output.shape[0] == ROWS
        assert [want for want in spec.shape if want >= 0] == [
            size for size, want in zip(output.shape, spec.shape, strict=True) if want >= 0
        ]
        assert output.dtype == np.float32
        assert np.isfinite(output).all()


class Counting(nn.Module):
    """Notes the rows of every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(given))
        return given * self.weight


def counting(*, is_batchable: bool = True) -> tuple[TorchNetwork, Counting]:
    spec = {"datatype": "FP32", "shape": [-1, 2]}
    sidecar = {"model_type": "counting", "method": "fp32", "batchable": is_batchable}
    sidecar |= {"inputs": [{"name": "x", **spec}], "outputs": [{"name": "y", **spec}]}
    module = Counting()
    return TorchNetwork(module, sidecar, 0, [np.ones((2, 2), np.float32)]), module


@pytest.mark.parametrize(
    ("is_batchable", "limit_s", "passes"),
    [(True, 60.0, [1, 2, 32]), (True, 0.0, [1, 2]), (False, 60.0, [1])],
    ids=["joined", "slow", "alone"],
)
def test_a_warm_up_computes_the_largest_batch_that_time_allows(
    monkeypatch: pytest.MonkeyPatch, *, is_batchable: bool, limit_s: float, passes: list[int]
) -> None:
    monkeypatch.setattr(serving_network, "WARM_UP_S", limit_s)
    network, module = counting(is_batchable=is_batchable)
    assert network.warm_up(32) == passes[-1]
    assert module.rows == passes


def test_a_closed_network_keeps_its_description_and_not_its_weights() -> None:
    network, module = counting()
    weights, inputs = weakref.ref(module), network.inputs
    del module
    network.close()
    assert weights() is None
    assert network.inputs == inputs
    with pytest.raises(RuntimeError, match="was closed"):
        network.run([np.ones((1, 2), np.float32)])


def test_a_load_that_fails_keeps_nothing_of_what_it_had_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[nn.Module]] = []

    def load(_artifact: Path, _device: str, _texts_bytes: int | None) -> TorchNetwork:
        half = Counting()
        loaded.append(weakref.ref(half))
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(serving_network, "load", load)
    with pytest.raises(LoadFailedError) as caught:
        TorchLoader("cpu", 1).load(Path("r1"))
    assert caught.value.code == "insufficient_memory"
    assert loaded[0]() is None


def test_the_devices_memory_is_told_once_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TorchLoader("cpu", 1).device_memory() is None
    figures = {"memory_allocated": 1, "memory_reserved": 2, "max_memory_allocated": 3}
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4, 5))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert serving_network.device_memory() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert serving_network.device_memory() == {
        "allocated_bytes": 1, "reserved_bytes": 2, "peak_allocated_bytes": 3, "free_bytes": 4, "total_bytes": 5,
    }  # fmt: skip


@pytest.mark.parametrize("model_type", ["rnn-stroke", "rnn-radical"])
def test_lengths_beyond_the_input_are_the_clients_mistake(model_type: str) -> None:
    async def scenario() -> None:
        network, arrays = network_of(model_type)
        values, lengths = arrays
        too_long = lengths.copy()
        too_long[0] = values.shape[1] + 1
        async with harness() as it:
            await it.serve("m", network)
            inputs = [
                {"name": spec.name, "shape": array.shape, "datatype": spec.datatype, "data": array.ravel().tolist()}
                for spec, array in zip(network.inputs, (values, too_long), strict=True)
            ]
            reply = await it.data.post("/v2/models/m/infer", json={"inputs": inputs})
            assert reply.status_code == 400, reply.text

    run(scenario)


def test_an_index_that_an_embedding_lacks_never_reaches_the_device() -> None:
    network, (values, lengths) = network_of("rnn-radical")
    outside = np.full_like(values, network.inputs[0].maximum or 0) + 1
    given = [Tensor("input", "INT64", outside), Tensor("lengths", "INT64", lengths)]
    with pytest.raises(BadRequestError, match=r"holds .+ at \[.+\]: the model takes"):
        check_inputs(given, network.inputs)


class Odd(nn.Module):
    """Answers in one of the forms that modules use."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, given: torch.Tensor) -> Any:
        a, b = given + 1, given.bool()
        return {"tuple": (a, b), "mapping": {"b": b, "a": a}}[self.form]


@pytest.mark.parametrize("form", ["tuple", "mapping"])
@pytest.mark.parametrize("datatype", ["FP32", "BF16"])
def test_several_outputs_are_told_apart_by_order_or_by_name(form: str, datatype: str) -> None:
    sidecar = {
        "model_type": "odd",
        "method": "fp32",
        "batchable": True,
        "inputs": [{"name": "x", "datatype": datatype, "shape": [-1, 2]}],
        "outputs": [
            {"name": "a", "datatype": datatype, "shape": [-1, 2]},
            {"name": "b", "datatype": "BOOL", "shape": [-1, 2]},
        ],
    }
    network = TorchNetwork(Odd(form), sidecar, 0, [])
    # 1.0 and 0.0, as bits for BF16; 2.0 is 0x4000 there (sign, 8 bits of exponent, 7 of fraction).
    given = np.array([[1, 0]], "<f4") if datatype == "FP32" else np.array([[0x3F80, 0]], "<u2")
    a, b = network.run([given])
    assert a.tolist() == ([[2.0, 1.0]] if datatype == "FP32" else [[0x4000, 0x3F80]])
    assert b.tolist() == [[True, False]]
