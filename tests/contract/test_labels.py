"""What classes are called: from the ways in which checkpoints say it into the sidecar, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from agent import architectures
from agent.quantization import jobs, labels
from agent.quantization.checkpoint import open_checkpoint

CLASSES = 40
NAMES = [f"name {number}" for number in range(CLASSES)]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(architectures.build("hiercode", CLASSES).state_dict())


def sidecar(checkpoint: Path, folder: Path) -> Any:
    """Build and return the sidecar."""
    job = {
        "job": "build",
        "checkpoint": str(checkpoint),
        "method": "nf4",
        "output_dir": str(folder),
        "gate": {"rows": 2},
    }
    return json.loads(Path(jobs.run(job, lambda _event: None)["sidecar"]).read_bytes())


def test_the_classes_beside_a_state_dict_reach_the_sidecar(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"model_state_dict": state, "classes": NAMES}, tmp_path / "model.pt")
    assert sidecar(tmp_path / "model.pt", tmp_path / "out")["labels"] == NAMES


def test_the_classes_in_the_metadata_of_safetensors_reach_the_sidecar(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(state, tmp_path / "model.safetensors", metadata={"classes": json.dumps(NAMES)})
    assert sidecar(tmp_path / "model.safetensors", tmp_path / "out")["labels"] == NAMES


@pytest.mark.parametrize("classes", [None, NAMES[:-1], "abc", [*NAMES[:-1], 1], [*NAMES[:-1], "x" * 201], {"a": 1}])
def test_what_does_not_name_each_class_is_left_out_and_fails_nothing(
    state: dict[str, torch.Tensor], tmp_path: Path, classes: Any
) -> None:
    torch.save({"model_state_dict": state, "classes": classes}, tmp_path / "model.pt")
    assert sidecar(tmp_path / "model.pt", tmp_path / "out")["labels"] is None


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "1", '["a", null]'])
def test_metadata_that_is_no_list_of_names_names_nothing(
    state: dict[str, torch.Tensor], tmp_path: Path, text: str
) -> None:
    save_file(state, tmp_path / "model.safetensors", metadata={"classes": text})
    assert open_checkpoint(tmp_path / "model.safetensors").labels == ()


def test_a_configuration_s_names_count_unless_they_are_placeholders() -> None:
    assert labels.of_config({"id2label": {"1": "dog", "0": "cat"}}) == ("cat", "dog")
    assert labels.of_config({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) == ()
    assert labels.of_config({"id2label": {"0": "cat", "2": "dog"}}) == ()
    assert labels.of_config({"id2label": ["cat"]}) == ()
    assert labels.of_config({}) == ()


def test_the_demo_s_checkpoint_names_its_characters(kanji: Path) -> None:
    listed = json.loads((kanji / "classes.json").read_text(encoding="utf-8"))["classes"]
    assert list(open_checkpoint(kanji / "checkpoint_best.pt").labels) == listed
