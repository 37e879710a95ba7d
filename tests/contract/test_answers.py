"""The builder's job that asks artifacts: each answers as the server would, and one that cannot harms no other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from agent.quantization import answers, artifact, gate, jobs

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 4


@pytest.fixture(scope="module")
def built(kanji: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Artifacts of the demo's checkpoint, by method."""
    found = {}
    for method in ("nf4", "fp32"):
        job = {"job": "build", "checkpoint": str(kanji / "checkpoint_best.pt"), "method": method, "gate": {"rows": 2}}
        folder = tmp_path_factory.mktemp(method)
        found[method] = jobs.run({**job, "output_dir": str(folder)}, lambda _event: None)["artifact"]
    return found


@pytest.fixture(scope="module")
def image(kanji: Path) -> torch.Tensor:
    return load_file(kanji / "evaluation.safetensors")["inputs"][:1].float()


def request(image: torch.Tensor, **changes: Any) -> str:
    tensor = {"name": "input", "datatype": "FP32", "shape": list(image.shape), "data": image.flatten().tolist()}
    return json.dumps({"inputs": [{**tensor, **changes}]})


def ask(built: dict[str, str], text: str, **changes: str) -> list[dict[str, Any]]:
    artifacts = [{"method": method, "artifact": path} for method, path in {**built, **changes}.items()]
    job = {"job": "answer", "artifacts": artifacts, "request": text, "device": "cpu"}
    found: list[dict[str, Any]] = jobs.run(job, lambda _event: None)["answers"]
    return found


def test_every_artifact_answers_as_it_does_when_it_is_loaded(built: dict[str, str], image: torch.Tensor) -> None:
    for told in ask(built, request(image)):
        (output,) = told["outputs"]
        model = artifact.load(built[told["method"]], "cpu")
        expected = gate.answer(model, {"input": image})
        assert output["shape"] == list(expected.shape)
        assert torch.allclose(torch.tensor(output["data"]).reshape(output["shape"]), expected, rtol=1e-5, atol=1e-5)
        assert told["ms"] > 0


def test_one_that_cannot_be_loaded_says_why_and_the_others_answer(built: dict[str, str], image: torch.Tensor) -> None:
    told = {each["method"]: each for each in ask(built, request(image), gone="/nowhere/cnn.safetensors")}
    assert told["gone"]["error"].startswith("ArtifactError: the sidecar cnn.json cannot be read")
    assert "outputs" in told["nf4"]


@pytest.mark.parametrize(
    "changes",
    [{"name": "image"}, {"shape": [1, 1, 64, 63]}, {"data": ["a"]}, {"data": [[1.0], [1.0, 2.0]]}, {"shape": None}],
)
def test_an_input_that_does_not_fit_is_told_as_that(
    built: dict[str, str], image: torch.Tensor, changes: dict[str, Any]
) -> None:
    assert all(each["error"].startswith("BadInputError: the input") for each in ask(built, request(image, **changes)))


@pytest.mark.parametrize("text", ["{", "[]", '{"inputs": 1}', "{}"])
def test_a_text_that_is_no_request_is_told_as_that(built: dict[str, str], text: str) -> None:
    assert all(each["error"].startswith("BadInputError") for each in ask(built, text))


def test_a_long_answer_is_not_passed_on(
    built: dict[str, str], image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MOST_VALUES", 207)
    assert all("208 values, at most 207" in each["error"] for each in ask(built, request(image)))


def test_values_that_json_cannot_hold_are_null() -> None:
    found = answers._finite(torch.tensor([[1.0, float("nan")], [float("inf"), -float("inf")]]))
    assert found == [1.0, None, None, None]
