"""Images with their channels last: only where that is faster, and never with other answers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from agent import architectures
from agent.serving import acceleration
from agent.serving.layout import ChannelsLast, channels_last
from agent.serving.network import TorchNetwork
from agent.serving.residency import WORTH, Wish
from agent.serving.tuning import HANDOVER_S
from tests.contract.test_serving_residency import ROOM, served

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every way be measured as twice as fast as the model's own."""
    monkeypatch.setattr(acceleration, "_in_turns", lambda _way, _compute: (2.0, 1.0))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_laid_out_anew_and_what_is_computed_of_it_keeps_that_order(channels: int) -> None:
    given = torch.randn(2, channels, 8, 6)
    found = channels_last(given)
    assert torch.equal(found, given)
    convolved = nn.Conv2d(channels, 4, 3)(found)
    assert convolved.is_contiguous(memory_format=torch.channels_last)
    assert not nn.Conv2d(channels, 4, 3)(given).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("method", ["fp32", "nf4", "int8"])
def test_a_faster_order_is_kept_and_the_answers_with_it(method: str, tmp_path: Path) -> None:
    network = served(tmp_path, "cnn", method)
    examples = architectures.synthetic_inputs("cnn", {}, 5, 1)
    arrays = [examples[spec.name].numpy() for spec in network.inputs]
    before = network.run(arrays)
    found = network.tune(8)
    assert found.layout is not None
    assert found.layout.is_kept
    assert isinstance(network.call, ChannelsLast)
    for ours, plain in zip(network.run(arrays), before, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    network.reside(Wish("unpacked", ROOM))
    assert not isinstance(network.call, ChannelsLast), "what was measured of other weights does not stay"


def test_the_order_is_what_was_measured(tmp_path: Path) -> None:
    network = served(tmp_path, "cnn", "fp32")
    found = network.tune(8).layout
    assert found is not None
    assert found.own_ms
    assert found.ms
    assert found.is_kept == isinstance(network.call, ChannelsLast)
    assert found.is_kept == (found.ms <= WORTH * found.own_ms)


class Viewing(nn.Module):
    """Relies on the order of memory, as some models do."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return (given + 1).view(given.shape[0], -1)


@pytest.mark.usefixtures("faster")
def test_a_model_that_cannot_take_that_order_goes_on_as_before() -> None:
    sidecar = {"model_type": "made", "method": "fp32", "batchable": True}
    sidecar |= {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 4, 4]}]}
    sidecar |= {"outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 48]}]}
    given = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    network = TorchNetwork(Viewing(), sidecar, 0, [given])
    found = network.tune(8).layout
    assert found is not None
    assert not found.is_kept
    assert found.reason.startswith("it failed: RuntimeError: ")
    np.testing.assert_array_equal(network.run([given])[0], (given + 1).reshape(2, -1))


def test_what_a_row_takes_is_known_once_it_was_measured_and_for_these_weights_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.serving.network.joined_rows", lambda _compute, most: (most, {1: 0.5 + HANDOVER_S * 1e3}))
    network = served(tmp_path, "cnn", "nf4")
    assert math.isinf(network.row_s)
    network.tune(8)
    assert network.row_s == pytest.approx(0.0005)
    network.reside(Wish("unpacked", ROOM))
    assert math.isinf(network.row_s)


def test_where_there_is_no_image_nothing_is_tried(tmp_path: Path) -> None:
    assert served(tmp_path, "rnn", "fp32").tune(8).layout is None
