"""The number of a transformer's heads, which no tensor shape tells and a wrong one of which gives wrong answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from agent import architectures
from agent.architectures.errors import UnrecognisedCheckpointError
from agent.quantization import artifact, jobs
from agent.quantization.errors import BadCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPTIONS: dict[str, Any] = {
    "embedding_dim": 64, "num_transformer_layers": 1, "mlp_dim": 64, "use_tokens_to_tokens": False, "num_heads": 4,
}  # fmt: skip
"""Width 64 is assumed to be two heads where nothing tells."""


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    network = architectures.build("vit", 20, **OPTIONS).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)  # attention that is sharp enough for its heads to matter
    return network


def alone(folder: Path, state: dict[str, Any]) -> Path:
    torch.save(state, folder / "vit.pt")
    return folder / "vit.pt"


def in_the_same_folder(folder: Path, state: dict[str, Any]) -> Path:
    (folder / "vit_config.json").write_text(json.dumps({"num_heads": 4, "num_classes": 7}))
    return alone(folder, state)


def in_the_config_folder(folder: Path, state: dict[str, Any]) -> Path:
    for name in ("config", "checkpoints"):
        (folder / name).mkdir()
    (folder / "config" / "vit_config.json").write_text(json.dumps({"num_heads": 4}))
    return alone(folder / "checkpoints", state)


def in_the_file(folder: Path, state: dict[str, Any]) -> Path:
    (folder / "vit_config.json").write_text(json.dumps({"num_heads": 8}))  # the file itself knows better
    torch.save({"model_state_dict": state, "config": {"num_heads": 4}}, folder / "vit.pt")
    return folder / "vit.pt"


def in_a_safetensors_header(folder: Path, state: dict[str, Any]) -> Path:
    save_file(state, folder / "vit.safetensors", {"num_heads": "4"})
    return folder / "vit.safetensors"


@pytest.mark.parametrize("place", [in_the_same_folder, in_the_config_folder, in_the_file, in_a_safetensors_header])
def test_heads_are_read_wherever_a_training_leaves_them(
    place: Callable[[Path, dict[str, Any]], Path], model: torch.nn.Module, tmp_path: Path
) -> None:
    path = place(tmp_path, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    job = {"job": "build", "checkpoint": str(path), "method": "fp32", "output_dir": str(tmp_path / "out")}
    built = jobs.run({**job, "gate": {"rows": 2}}, lambda _event: None)
    assert built["options"]["num_heads"] == 4
    assert not any("assumed" in note for note in built["notes"])
    images = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.allclose(artifact.load(built["artifact"], "cpu")(images), model(images), atol=1e-5)


def test_what_was_taken_from_beside_the_file_is_said(model: torch.nn.Module, tmp_path: Path) -> None:
    told = inspect(in_the_same_folder(tmp_path, model.state_dict()))
    assert "num_heads 4 is from vit_config.json beside the checkpoint" in told["notes"]


def test_without_a_word_heads_are_assumed_and_it_is_said(model: torch.nn.Module, tmp_path: Path) -> None:
    told = inspect(alone(tmp_path, model.state_dict()))
    assert told["options"]["num_heads"] == 2
    assert any("assumed 2" in note for note in told["notes"])


def test_heads_that_cannot_be_are_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    path = alone(tmp_path, model.state_dict())
    (tmp_path / "vit_config.json").write_text('{"num_heads": 5}')
    with pytest.raises(UnrecognisedCheckpointError, match="5 attention heads, which cannot split a width of 64"):
        inspect(path)


@pytest.mark.parametrize("content", ["{", "[4]", ""])
def test_a_file_beside_it_that_cannot_be_read_is_named(content: str, model: torch.nn.Module, tmp_path: Path) -> None:
    path = alone(tmp_path, model.state_dict())
    (tmp_path / "vit_config.json").write_text(content)
    with pytest.raises(BadCheckpointError, match=r"vit_config\.json beside the checkpoint"):
        inspect(path)


def test_another_type_in_the_same_folder_takes_nothing_from_it(kanji: Path, tmp_path: Path) -> None:
    (tmp_path / "vit_config.json").write_text('{"num_heads": 5}')
    path = tmp_path / "cnn.pt"
    path.write_bytes((kanji / "checkpoint_best.pt").read_bytes())
    assert inspect(path)["notes"] == []


def inspect(path: Path) -> dict[str, Any]:
    return jobs.run({"job": "inspect", "checkpoint": str(path)}, lambda _event: None)
