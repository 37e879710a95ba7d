"""A short run of ``make fuzz`` on checkpoints: whatever a file holds is opened or refused, never an exception."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from agent.quantization.checkpoint import open_checkpoint
from tests.fuzz import campaign
from tests.fuzz.neighbours import try_neighbours

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = 600
ONCE_FOUND = {
    "a dtype that is an object": (
        "checkpoint",
        b'\x01{"w": {"dtype": {"": {}}, "shape": [2, 3], "data_offsets": [0, 24]}}',
    ),
    "sizes whose product has more digits than Python prints": (
        "checkpoint",
        b'\x01{"w": {"dtype": "F32", "shape": [%b], "data_offsets": [0, 24]}}' % b",".join([b"9" * 4000] * 3),
    ),
}


def test_whatever_comes_ends_well_and_soon(tmp_path: Path) -> None:
    try_neighbours(campaign.make("checkpoint", tmp_path), EXAMPLES)


@pytest.mark.parametrize(("name", "data"), ONCE_FOUND.values(), ids=ONCE_FOUND)
def test_what_was_once_found_stays_mended(name: str, data: bytes, tmp_path: Path) -> None:
    campaign.make(name, tmp_path)(data)


def test_a_seed_is_a_checkpoint_that_opens(tmp_path: Path) -> None:
    file = tmp_path / "seed"
    file.write_bytes(campaign.make("checkpoint", tmp_path).seeds()[0][1:])
    assert open_checkpoint(file).entries["fc.weight"].dtype is torch.float32
