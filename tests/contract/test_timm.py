"""timm:NAME through the builder, with a module that keeps timm's contract in timm's place.

timm itself imports torchvision, which has to fit torch's own build and often is not there; `test_timm_real` is for
where it is. What is used of timm is small enough to stand in for: ``is_model``, ``list_models``, ``create_model`` and a
network's ``pretrained_cfg``.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from agent import architectures
from agent.architectures.errors import UnknownModelTypeError, UnrecognisedCheckpointError
from agent.quantization import artifact, gate, jobs
from agent.quantization.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 24


class Network(nn.Module):
    """Two convolutions and a head, with a buffer that no state dict holds, as Swin's position indices."""

    def __init__(self, num_classes: int, in_chans: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 32, 3, padding=1)
        self.body = nn.Conv2d(32, 64, 3, padding=1)
        self.head = nn.Linear(64, num_classes)
        self.register_buffer("window", torch.hann_window(size[1]), persistent=False)
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (3, SIDE, SIDE),
            "first_conv": "stem",
            "classifier": ("head", "head_dist"),
        }

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.body(torch.relu(self.stem(images * self.get_buffer("window")))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def create_model(name: str, *, pretrained: bool, num_classes: int = 1000, in_chans: int = 3, **sized: Any) -> Network:
    assert not pretrained, "weights are never fetched"
    assert name == "tiny_net.v1"
    return Network(num_classes, in_chans, sized.get("img_size", (SIDE, SIDE)))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module in timm's place; every test has the same weights."""
    torch.manual_seed(0)
    monkeypatch.setattr(gate, "WARM_UP_CALLS", 0)
    monkeypatch.setattr(gate, "LATENCY_CALLS", 1)
    module: Any = types.ModuleType("timm")
    module.is_model = lambda name: name == "tiny_net.v1"
    module.list_models = lambda: ["tiny_net"]
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def built(folder: Path, model: nn.Module, model_type: str = "timm:tiny_net.v1", **fields: Any) -> dict[str, Any]:
    torch.save(model.state_dict(), folder / "source")
    job = {"job": "build", "checkpoint": str(folder / "source"), "model_type": model_type, "method": "nf4"}
    return jobs.run({**job, "output_dir": str(folder / "out"), "gate": {"rows": 4}, **fields}, lambda _event: None)


def test_classes_and_channels_come_from_the_layers_that_timm_names(tmp_path: Path) -> None:
    model = Network(11, 1, (SIDE, SIDE)).eval()
    result = built(tmp_path, model)
    assert (result["model_type"], result["num_classes"]) == ("timm:tiny_net.v1", 11)
    assert result["options"] == {"image": [1, SIDE, SIDE], "is_sized": False}
    assert result["gate"]["cosine"] > 0.9
    assert result["resident_bytes"] < result["source_tensor_bytes"] / 4
    sidecar = artifact.load_sidecar(result["artifact"])
    assert [spec["shape"] for spec in sidecar["inputs"]] == [[-1, 1, SIDE, SIDE]]


def test_an_fp32_artifact_answers_as_the_network_with_its_computed_buffer(tmp_path: Path) -> None:
    model = Network(11, 3, (SIDE, SIDE)).eval()
    result = built(tmp_path, model, method="fp32")
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.equal(artifact.load(result["artifact"], "cpu")(images), model(images))


@pytest.mark.parametrize(("told", "sides"), [(32, [32, 32]), ([16, 40], [16, 40])])
def test_an_image_size_that_accompanies_a_checkpoint_is_what_the_network_is_built_for(
    told: Any, sides: list[int], tmp_path: Path
) -> None:
    result = built(tmp_path, Network(11, 3, (sides[0], sides[1])), sidecar={"image_size": told})
    assert result["options"] == {"image": [3, *sides], "is_sized": True}


@pytest.mark.parametrize("told", [0, [1], [4, -4], "224", [2.0, 2.0]])
def test_an_image_size_that_is_none_is_refused(told: Any, tmp_path: Path) -> None:
    with pytest.raises(UnrecognisedCheckpointError, match="image_size"):
        built(tmp_path, Network(11, 3, (SIDE, SIDE)), sidecar={"image_size": told})


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    wider = Network(11, 3, (SIDE, SIDE))
    wider.body = nn.Conv2d(32, 96, 3)
    with pytest.raises(UnrecognisedCheckpointError, match=r"does not fit: 'body.weight' has shape \[96, 32, 3, 3\]"):
        built(tmp_path, wider)


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/tmp/model", "../model", "", "a b", "tiny_net."])
def test_a_name_that_leads_to_a_hub_or_a_folder_is_no_name(name: str) -> None:
    with pytest.raises(UnknownModelTypeError, match="timm:NAME"):
        architectures.build(f"timm:{name}", 3)


def test_a_name_that_timm_does_not_know_is_refused() -> None:
    with pytest.raises(UnknownModelTypeError, match=r"'timm:nothing'; known: 1 names in timm.list_models\(\)"):
        architectures.build("timm:nothing", 3)


def test_a_network_without_a_named_classifier_is_refused(
    tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def headless(name: str, **options: Any) -> Network:
        model = create_model(name, **options)
        model.pretrained_cfg["classifier"] = None
        return model

    monkeypatch.setattr(fake, "create_model", headless)
    with pytest.raises(UnrecognisedCheckpointError, match=r"layer of 'tiny_net.v1' is its classifier: it is None"):
        built(tmp_path, Network(11, 3, (SIDE, SIDE)))


def test_without_timm_the_job_is_unsupported_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UnsupportedError) as caught:
        built(tmp_path, Network(11, 3, (SIDE, SIDE)))
    assert (caught.value.code, caught.value.hint) == ("unsupported", "pip install 'nibbled[timm]'")


def test_a_timm_whose_import_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(architectures.ArchitectureError, match="RuntimeError: operator torchvision::nms does not exist"):
        architectures.build("timm:tiny_net.v1", 3)
