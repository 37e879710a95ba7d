"""Weights that are kept unpacked while they serve: the same answers, the memory as announced, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from agent import architectures
from agent.planning.methods import METHODS
from agent.quantization import artifact, modules, quantizer, sidecar
from agent.quantization.assignment import Scheme
from agent.quantization.checkpoint import open_checkpoint
from agent.serving import network as serving_network
from agent.serving.residency import WORTH, Wish

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from agent.serving.network import TorchNetwork

CLASSES = 300
ROOM = 1 << 30


def served(folder: Path, model_type: str, method: str) -> TorchNetwork:
    """Return a fresh model of a type as the server loads it."""
    torch.manual_seed(0)
    source, target = folder / "source.pt", folder / "packed.safetensors"
    torch.save(architectures.build(model_type, CLASSES).state_dict(), source)
    checkpoint = open_checkpoint(source)
    found = architectures.recognise(checkpoint.shapes, {"num_heads": 8} if model_type == "vit" else {}, model_type)
    scheme = Scheme.uniform(METHODS[method])
    quantizer.quantize(checkpoint, found, target, scheme, blocksize=64, progress=lambda _done, _total: None)
    sidecar.write(target, sidecar.describe(found, scheme, 64))
    artifact.load_sidecar(target)
    return serving_network.load(target, "cpu")


def weights(network: TorchNetwork) -> int:
    module: nn.Module | None = network._module
    assert module is not None
    return modules.resident_bytes(module)


@pytest.mark.parametrize(("model_type", "method"), [(name, "nf4-dq") for name in architectures.names()] + [
    ("cnn", "int8"), ("rnn", "fp16"), ("vit", "fp4")
])  # fmt: skip
def test_answers_stay_and_memory_is_what_was_announced(model_type: str, method: str, tmp_path: Path) -> None:
    network = served(tmp_path, model_type, method)
    examples = architectures.synthetic_inputs(model_type, {}, 3, 1)
    arrays = [examples[spec.name].numpy() for spec in network.inputs]
    packed, before = network.run(arrays), weights(network)
    found = network.reside(Wish("unpacked", ROOM))
    assert found.is_unpacked
    assert network.unpacked_bytes == found.unpacked_bytes == weights(network) - before > before
    for kept, asked in zip(network.run(arrays), packed, strict=True):
        np.testing.assert_allclose(kept, asked, rtol=1e-4, atol=1e-5)
    assert not network.reside(Wish("packed")).is_unpacked
    assert (network.unpacked_bytes, weights(network)) == (0, before)


def test_auto_measures_both_ways_on_the_model_itself(tmp_path: Path) -> None:
    found = served(tmp_path, "cnn", "nf4-dq").reside(Wish("auto", ROOM))
    assert found.packed_ms
    assert found.unpacked_ms
    assert found.is_unpacked == (found.unpacked_ms <= WORTH * found.packed_ms)


def test_what_does_not_fit_stays_packed(tmp_path: Path) -> None:
    network = served(tmp_path, "cnn", "nf4-dq")
    before = weights(network)
    assert not network.reside(Wish("unpacked", 1000)).is_unpacked
    assert weights(network) == before


def test_a_state_dict_is_the_artifact_whatever_is_kept(tmp_path: Path) -> None:
    network = served(tmp_path, "rnn", "nf4")
    network.reside(Wish("unpacked", ROOM))
    module = network._module
    assert module is not None
    assert set(module.state_dict()) == set(artifact.load(tmp_path / "packed.safetensors", "cpu").state_dict())
