"""Networks of the real timm through the builder: `make test-timm`, which installs what timm imports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from agent.quantization import artifact, jobs

if TYPE_CHECKING:
    from pathlib import Path

timm = pytest.importorskip("timm", reason="run `make test-timm`: timm imports torchvision", exc_type=ImportError)

NETWORKS = (
    "resnet18", "mobilenetv3_small_100", "efficientnet_b0", "convnext_atto",
    "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
)  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_timm_is_quantized_and_answers_as_timm_s_own_does(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=10).eval()
    source = tmp_path / "source.pt"
    torch.save(network.state_dict(), source)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(images)
    job = {"job": "build", "checkpoint": str(source), "model_type": f"timm:{name}", "gate": {"rows": 2}}

    whole = jobs.run({**job, "method": "fp32", "output_dir": str(tmp_path / "fp32")}, lambda _event: None)
    with torch.inference_mode():
        assert torch.allclose(artifact.load(whole["artifact"], "cpu")(images), expected, atol=1e-4)

    packed = jobs.run({**job, "method": "nf4-dq", "output_dir": str(tmp_path / "nf4")}, lambda _event: None)
    assert packed["coverage"] > 0.94
    assert packed["resident_bytes"] < whole["resident_bytes"] / 5
    with torch.inference_mode():
        assert torch.isfinite(artifact.load(packed["artifact"], "cpu")(images)).all()
