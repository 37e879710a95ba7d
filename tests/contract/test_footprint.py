"""What a model will need, told by its definition, beside what it takes when it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from agent import architectures
from agent.planning.memory import SERVED_ROWS, estimate
from agent.planning.methods import METHODS
from agent.quantization import artifact, footprint, jobs, modules, process, quantizer, sidecar, working_set
from agent.quantization.assignment import Scheme
from agent.quantization.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"vit": {"num_heads": 8}}


@pytest.mark.parametrize("name", architectures.names())
def test_the_weights_of_every_type_are_estimated_to_the_byte(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source.pt"
    torch.save(architectures.build(name, 300).state_dict(), source)
    checkpoint = open_checkpoint(source)
    found = architectures.recognise(checkpoint.shapes, OPTIONS.get(name, {}), name)
    needs, notes = footprint.measure(found, SERVED_ROWS)
    for method in ("nf4-dq", "fp4", "int8", "fp16", "fp32"):
        path, scheme = tmp_path / f"{method}.safetensors", Scheme.uniform(METHODS[method])
        quantizer.quantize(checkpoint, found, path, scheme, blocksize=64, progress=lambda _done, _total: None)
        sidecar.write(path, sidecar.describe(found, scheme, 64))
        assert modules.resident_bytes(artifact.load(path, "cpu")) == estimate(needs, METHODS[method]).weights_bytes
    assert needs.activation_bytes > 0
    assert needs.rows == (SERVED_ROWS if architectures.is_batchable(name) else 1)
    assert len(notes) == (name in ("rnn-stroke", "rnn-radical"))


def test_no_weight_is_allocated_to_tell_what_a_model_needs() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(t.shape) for key, t in architectures.build("vit", 500_000).state_dict().items()}
    before = process.anonymous_bytes()
    needs, _ = footprint.measure(architectures.recognise(shapes, {"num_heads": 8}, "vit"), 1)
    assert max(needs.matrices) == 500_000 * 256
    assert process.anonymous_bytes() - before < 64 << 20  # the head alone would be 512 MB


def test_the_peak_of_intermediate_results_is_what_is_alive_at_one_time() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            z = y + 1  # two results alive, each as large as the input
            del y
            return z + 1

    alive = footprint._Alive()
    with torch.inference_mode(), torch.device("meta"), alive:
        Three()(torch.empty(1000))
    assert alive.peak_bytes == 3 * 4000


def test_inspecting_a_checkpoint_tells_its_footprint(kanji: Path) -> None:
    told = jobs.run({"job": "inspect", "checkpoint": str(kanji / "checkpoint_best.pt")}, lambda _event: None)
    assert told["footprint"]["rows"] == SERVED_ROWS
    assert len(told["footprint"]["matrices"]) == 18


def test_what_a_batch_takes_for_a_moment_is_measured() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("one", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x.repeat(1, 2_000_000).sum(dim=1, keepdim=True)  # 8 MB a row, gone before the end

    small, large = (working_set.measure(Wide(), {"x": torch.ones(1, 1)}, rows, rows) for rows in (1, 8))
    if small is None or large is None:
        pytest.skip("this system does not let the high-water mark be reset")
    assert 7_900_000 <= small < 16_000_000
    assert 63_000_000 <= large < 80_000_000
