"""The packed layers and artifacts on a real GPU: the same weights, multiplied in 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import agent
from agent import architectures
from agent.planning.methods import METHODS, Method
from agent.quantization import jobs, packed
from agent.quantization.layers import PackedLinear
from agent.quantization.packed import PackedTensor
from agent.quantization.probe import probe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PACKING = [method for method in METHODS.values() if method.name != "fp32"]


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("width", [256, 100])
@pytest.mark.parametrize("method", PACKING, ids=lambda method: method.name)
def test_a_packed_linear_answers_on_the_gpu_as_on_the_cpu(method: Method, width: int, rows: int) -> None:
    torch.manual_seed(0)
    weight = PackedTensor((96, width), method, 64)
    for name, part in packed.pack(torch.randn(96, width), method, 64).items():
        weight.register_buffer(name, part)
    layer = PackedLinear(weight, nn.Parameter(torch.randn(96), requires_grad=False))
    x = torch.randn(rows, width)
    with torch.inference_mode():
        want = layer(x)
        got = layer.to("cuda")(x.to("cuda")).cpu()
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 0.03 * want.abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_an_artifact_answers_on_the_gpu_as_on_the_cpu(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(architectures.build("cnn", 300).state_dict(), tmp_path / "source")
    job = {
        "job": "build",
        "checkpoint": str(tmp_path / "source"),
        "method": method,
        "output_dir": str(tmp_path / "out"),
    }
    path = jobs.run({**job, "gate": {"rows": 8}}, lambda _event: None)["artifact"]
    x = torch.rand(8, 1, 64, 64)
    with torch.inference_mode():
        want, got = agent.load(path, "cpu")(x), agent.load(path, "cuda")(x.to("cuda")).cpu()
    assert (got - want).abs().max() < 0.05 * want.abs().max()


def test_every_method_passes_its_probe() -> None:
    result = probe(list(METHODS))
    assert all(entry["ok"] for entry in result["methods"].values())
    assert result["cuda"]["total_bytes"] >= result["cuda"]["free_bytes"] > 0


@pytest.mark.parametrize("name", ["nf4", "nf4-dq", "fp4", "int8"])
def test_weights_packed_on_the_gpu_are_those_packed_on_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    weights = torch.randn(256, 512)
    here = packed.pack(weights, METHODS[name], 64)
    there = packed.pack(weights.cuda(), METHODS[name], 64)
    same = (here["codes"] == there["codes"].cpu()).float().mean().item()
    assert same > 0.999  # weights at the very border of two codes may fall to either side
