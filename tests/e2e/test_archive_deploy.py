"""A Hugging Face model in one file, from a command on the broker to an answer."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.harness.operator import MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness.world import StartDevice, World

transformers = pytest.importorskip("transformers", minversion="5.0", reason="the extra 'transformers' is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_an_archive_is_deployed_quantized_and_answers(tmp_path: Path, start_device: StartDevice, world: World) -> None:
    config = transformers.BertConfig(
        vocab_size=200, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, num_labels=5
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    with tarfile.open(tmp_path / "model.tar", "w") as archive:
        archive.add(tmp_path / "model", arcname="model")
    file = world.files.host("model.tar", (tmp_path / "model.tar").read_bytes())

    device = start_device("texts")
    manifest = device.operator.manifest(file, model_type="hf")
    ended = device.operator.result(device.operator.deploy(manifest, gate={"dataset": None}, method="nf4"))
    assert (ended["state"], ended["error"]) == ("succeeded", None)
    assert device.operator.served()["model_type"] == "hf"

    ids = {"name": "input_ids", "datatype": "INT64", "shape": [1, 4], "data": [2, 17, 99, 3]}
    mask = {"name": "attention_mask", "datatype": "INT64", "shape": [1, 4], "data": [1, 1, 1, 1]}
    answer = httpx.post(f"{device.agent.url}/models/{MODEL}/infer", json={"inputs": [ids, mask]}, timeout=30.0)
    assert answer.status_code == httpx.codes.OK, answer.text
    (output,) = answer.json()["outputs"]
    assert output["shape"] == [1, 5]
