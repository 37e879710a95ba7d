"""Graphs of a model, on a simulated device: sizes, padding, what they may take, and every way back.

No GPU has run this code yet; ``tests/gpu`` has the same questions for a real one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from agent.serving import acceleration
from agent.serving.network import TorchNetwork
from agent.serving.terms import Terms
from tests.contract.test_serving_compiled import Small, network
from tests.fakes.cuda_graphs import Device

AUTO = Terms(graphs="auto", allowed_bytes=10_000)
DATA = np.random.default_rng(1).random((40, 6), dtype=np.float32)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device on which whatever is recorded is worth it."""
    torch.manual_seed(0)
    monkeypatch.setattr(acceleration, "WORTH", float("inf"))
    device = Device()
    device.install(monkeypatch)
    return device


def answers(module: nn.Module, rows: int) -> Any:
    with torch.inference_mode():
        return module(torch.from_numpy(DATA[:rows])).numpy()


def test_every_size_is_answered_by_the_smallest_graph_with_room_and_more_by_the_model_itself(device: Device) -> None:
    module = Small()
    it = network(module)
    found = it.accelerate(AUTO, 12)["graphs"]
    assert found.is_kept, found.reason
    assert set(device.modes) == {"thread_local"}, "other models compute meanwhile"
    by_size = dict(zip((12, 8, 4, 2, 1), device.graphs, strict=True))
    for rows, size in ((1, 1), (2, 2), (3, 4), (8, 8), (9, 12), (12, 12)):
        before = {each: graph.replays for each, graph in by_size.items()}
        np.testing.assert_allclose(it.run([DATA[:rows]])[0], answers(module, rows), atol=1e-6)
        assert [each for each, graph in by_size.items() if graph.replays > before[each]] == [size]
    replays = sum(graph.replays for graph in device.graphs)
    np.testing.assert_allclose(it.run([DATA[:13]])[0], answers(module, 13), atol=1e-6)
    assert sum(graph.replays for graph in device.graphs) == replays


def test_rows_that_are_missing_are_zeros_whatever_was_asked_before(device: Device) -> None:
    class Sums(nn.Module):
        """Each row has the sum of all in its answer: what a batch must not do, and what shows what was in it."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] + x.sum()

    it = network(Sums())
    assert it.accelerate(AUTO, 4)["graphs"].is_kept
    it.run([np.full((4, 6), 7.0, np.float32)])
    rows = np.ones((3, 6), np.float32)
    np.testing.assert_allclose(it.run([rows])[0], np.full((3, 3), 19.0))
    assert device.synchronized


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_several_outputs_are_cut_each(kind: str, device: Device) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {"a": x, "b": x[:, :3]} if kind == "dict" else (x, x[:, :3])

    outputs = [
        {"name": "a", "datatype": "FP32", "shape": [-1, 6]},
        {"name": "b", "datatype": "FP32", "shape": [-1, 3]},
    ]
    it = network(Two(), outputs=outputs)
    assert it.accelerate(AUTO, 8)["graphs"].is_kept
    first, second = it.run([DATA[:5]])
    np.testing.assert_array_equal(first, DATA[:5])
    np.testing.assert_array_equal(second, DATA[:5, :3])
    assert len(device.graphs) == 4


def test_what_looks_at_values_cannot_be_recorded_and_keeps_its_own_way(device: Device) -> None:
    module = Small(has_hole=True)
    it = network(module)
    with capture_logs() as lines:
        found = it.accelerate(AUTO, 2)["graphs"]
    assert (found.is_kept, it.call, device.graphs) == (False, module, [])
    assert "not permitted when stream is capturing" in found.reason
    assert [(line["event"], line["way"]) for line in lines] == [("acceleration_failed", "graphs")]
    np.testing.assert_allclose(it.run([DATA[:2]])[0], answers(module, 2), atol=1e-6)


def test_graphs_that_take_more_than_is_free_for_them_are_let_go(device: Device) -> None:
    module = Small()
    it = network(module)
    found = it.accelerate(Terms(graphs="auto", allowed_bytes=2999), 4)["graphs"]
    assert (found.is_kept, it.call) == (False, module)
    assert found.reason == "graphs took 3,000 bytes, 2,999 are free for them"
    assert it.accelerate(Terms(graphs="auto", allowed_bytes=3000), 4)["graphs"].is_kept
    assert len(device.graphs) == 6


def test_a_device_that_is_lost_while_it_records_is_lost(device: Device) -> None:
    device.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        network(Small()).accelerate(AUTO, 2)


def test_types_whose_shapes_vary_have_no_graph(device: Device) -> None:
    inputs = [{"name": "input", "datatype": "FP32", "shape": [-1, -1]}]
    sidecar = {"model_type": "small", "method": "fp32", "batchable": True, "inputs": inputs}
    outputs = [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    it = TorchNetwork(Small(), {**sidecar, "outputs": outputs}, 1, [DATA[:2]])
    assert it.accelerate(AUTO, 2)["graphs"].reason == "the shapes of its inputs vary, and a graph has one"
    assert device.graphs == []


def test_without_a_gpu_nothing_is_recorded() -> None:
    assert network(Small()).accelerate(AUTO, 2)["graphs"].reason == "graphs are for GPUs"
