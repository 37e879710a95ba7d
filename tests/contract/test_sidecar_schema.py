"""The sidecar's published schema: it is what the code defines, fits what the builder writes, and refuses the rest."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it ships no types

from agent import architectures
from agent.planning import model_types
from agent.planning.methods import NAMES
from agent.quantization import gate, jobs, schema

if TYPE_CHECKING:
    from collections.abc import Callable

PUBLISHED = Path(schema.__file__).with_name("sidecar.schema.json")
CLASSES = 40


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "WARM_UP_CALLS", 0)
    monkeypatch.setattr(gate, "LATENCY_CALLS", 1)


@cache
def validator() -> Any:
    return Draft202012Validator(json.loads(PUBLISHED.read_text(encoding="utf-8")))


def complaints(sidecar: Any) -> list[str]:
    return [error.message for error in validator().iter_errors(sidecar)]


def written(folder: Path, model_type: str = "hiercode", **fields: Any) -> Any:
    """Build a fresh model and return the sidecar as it lies on the disk."""
    torch.save(architectures.build(model_type, CLASSES).state_dict(), folder / "source.pt")
    job = {
        "job": "build",
        "checkpoint": str(folder / "source.pt"),
        "model_type": model_type,
        "method": "nf4-dq",
        "output_dir": str(folder),
        "gate": {"rows": 2},
    }
    result = jobs.run({**job, **fields}, lambda _event: None)
    return json.loads(Path(result["sidecar"]).read_bytes())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return written(tmp_path_factory.mktemp("sidecar"))


def test_the_published_file_is_what_the_code_defines() -> None:
    told = "run: python -m agent.quantization.schema > agent/quantization/sidecar.schema.json"
    assert PUBLISHED.read_text(encoding="utf-8") == schema.text(), told


def test_the_schema_is_itself_valid_in_its_dialect() -> None:
    Draft202012Validator.check_schema(validator().schema)
    assert validator().schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("model_type", model_types.names())
def test_the_sidecar_of_every_model_type_fits(model_type: str, tmp_path: Path) -> None:
    assert complaints(written(tmp_path, model_type)) == []


@pytest.mark.parametrize("method", NAMES)
def test_the_sidecar_of_every_method_fits(method: str, tmp_path: Path) -> None:
    assert complaints(written(tmp_path, method=method)) == []


def test_the_sidecar_of_a_build_judged_by_labelled_data_fits(kanji: Path, tmp_path: Path) -> None:
    job = {
        "job": "build",
        "checkpoint": str(kanji / "checkpoint_best.pt"),
        "method": "nf4",
        "blocksize": 128,
        "output_dir": str(tmp_path),
        "gate": {"rows": 8, "dataset": str(kanji / "evaluation.safetensors")},
    }
    result = jobs.run(job, lambda _event: None)
    sidecar = json.loads(Path(result["sidecar"]).read_bytes())
    assert sidecar["gate"]["accuracy"] is not None
    assert complaints(sidecar) == []


def test_a_sidecar_of_before_answers_were_told_still_fits(sound: Any) -> None:
    sidecar = copy.deepcopy(sound)
    assert sidecar["gate"].pop("answer") == "classes"
    assert complaints(sidecar) == []


@pytest.mark.parametrize("key", sorted(schema.json_schema()["required"]))
def test_a_sidecar_without_one_of_its_keys_is_refused(key: str, sound: Any) -> None:
    assert complaints({name: value for name, value in sound.items() if name != key})


def _set(sidecar: Any, path: str, value: Any) -> None:
    *way, last = path.split(".")
    for step in way:
        sidecar = sidecar[step]
    sidecar[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("method", "nf5"),
        ("model_type", ""),
        ("num_classes", 0),
        ("num_classes", "40"),
        ("blocksize", 48),
        ("source_sha256", "ABC"),
        ("artifact_bytes", -1),
        ("coverage", 1.01),
        ("inputs", []),
        ("gate.agreement", 2),
        ("gate.kl", -0.5),
        ("gate.inputs", "invented"),
        ("gate.answer", "image"),
        ("gate.latency_ms.p50", None),
        ("versions.torch", None),
        ("undescribed", 1),
        ("gate.undescribed", 1),
    ],
)
def test_a_sidecar_with_a_wrong_value_is_refused(path: str, value: Any, sound: Any) -> None:
    sidecar = copy.deepcopy(sound)
    _set(sidecar, path, value)
    assert complaints(sound) == []
    assert complaints(sidecar)


def _drop_blocks(sidecar: Any) -> None:
    sidecar["blocksize"] = None


def _drop_nesting(sidecar: Any) -> None:
    sidecar["double_quant"] = False


def _swap_codebook(sidecar: Any) -> None:
    sidecar["quant_type"] = "fp4"


def _widen(sidecar: Any) -> None:
    sidecar["bits"] = 8


def _mix(sidecar: Any) -> None:
    sidecar["method"] = "mixed"


@pytest.mark.parametrize("contradict", [_drop_blocks, _drop_nesting, _swap_codebook, _widen, _mix])
def test_a_sidecar_that_contradicts_its_method_is_refused(contradict: Callable[[Any], None], sound: Any) -> None:
    sidecar = copy.deepcopy(sound)
    contradict(sidecar)
    assert complaints(sidecar)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = Path(__file__).parents[1] / "data" / "trained_rnn"
    folder = tmp_path_factory.mktemp("mixed")
    job = {
        "job": "build",
        "checkpoint": str(data / "rnn.pt"),
        "method": "mixed",
        "output_dir": str(folder),
        "mixed": {"base": "nf4-dq", "budget_bytes": 150_000},
        "gate": {"rows": 416, "dataset": str(data / "rnn.safetensors")},
    }
    return json.loads(Path(jobs.run(job, lambda _event: None)["sidecar"]).read_bytes())


def test_the_sidecar_of_a_mix_names_the_method_of_each_packed_tensor_and_fits(mixed: Any) -> None:
    assert complaints(mixed) == []
    assert (mixed["method"], mixed["bits"], mixed["double_quant"], mixed["mixed"]["base"]) == (
        "mixed",
        4,
        True,
        "nf4-dq",
    )
    assert set(mixed["mixed"]["table"].values()) == {"nf4-dq", "int8"}
    assert len(mixed["mixed"]["table"]) == 10


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("mixed", None),
        ("mixed.base", "int8"),
        ("mixed.base", "fp4"),
        ("mixed.table", {"a": "nf5"}),
        ("mixed.table", {"a": "mixed"}),
        ("mixed.counts", {"nf5": 1}),
        ("mixed.trials", []),
        ("mixed.undescribed", 1),
        ("bits", 8),
        ("blocksize", None),
        ("method", "nf4-dq"),
    ],
)
def test_a_sidecar_of_a_mix_with_a_wrong_value_is_refused(path: str, value: Any, mixed: Any) -> None:
    sidecar = copy.deepcopy(mixed)
    _set(sidecar, path, value)
    assert complaints(sidecar)
