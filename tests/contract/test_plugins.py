"""A user's own model type, installed as a distribution of its own, through the real builder process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import agent
from agent import architectures

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(agent.__file__).parents[1]
CLASSES, WIDTH = 12, 80

MODULE = """
    from dataclasses import replace

    import torch
    from torch import nn

    from agent.architectures import ModelType, Reading, TensorSpec

    class TwoLayers(nn.Module):
        def __init__(self, num_classes, width):
            super().__init__()
            self.inner = nn.Linear(16, width)
            self.outer = nn.Linear(width, num_classes)
            self.register_buffer("shift", torch.arange(16.0), persistent=False)

        def forward(self, x):
            return self.outer(torch.relu(self.inner(x + self.shift)))

    def build(num_classes, *, width=8):
        return TwoLayers(num_classes, width)

    def read(shapes, sidecar):
        return Reading({"width": shapes.size("inner.weight")}, notes=("told " + str(sidecar.get("season")),))

    def draw(options, rows, generator):
        return {"input": torch.from_numpy(generator.standard_normal((rows, 16), dtype="float32"))}

    TINY = ModelType(
        name="tiny",
        build=build,
        classifier_key="outer.weight",
        matches=lambda shapes: "inner.weight" in shapes and "outer.weight" in shapes,
        read=read,
        inputs=lambda options: (TensorSpec("input", "FP32", (-1, 16)),),
        synthetic_inputs=draw,
    )
    MISNAMED = replace(TINY, name="small")
    NO_TYPE = "a text"
"""
LOAD = """
    import sys, torch, agent
    model = agent.load(sys.argv[1], device="cpu")
    print(type(model).__module__, list(model(torch.zeros(3, 16)).shape))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with one distribution, as an installer lays it out."""
    site = tmp_path / "site"
    record = site / "tiny_models-1.0.dist-info"
    record.mkdir(parents=True)
    (site / "tiny_models.py").write_text(textwrap.dedent(MODULE))
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-models\nVersion: 1.0\n")
    announce(site, "tiny = tiny_models:TINY")
    return site


def announce(site: Path, *lines: str) -> None:
    text = "\n".join(["[nibbled.architectures]", *lines, ""])
    (site / "tiny_models-1.0.dist-info" / "entry_points.txt").write_text(text)


def run(site: Path, arguments: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], input=text, capture_output=True, text=True, check=False,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip


def build(site: Path, **fields: Any) -> dict[str, Any]:
    """Run the builder on a checkpoint of the user's type; returns its last event."""
    torch.manual_seed(0)
    layers = {"inner": nn.Linear(16, WIDTH), "outer": nn.Linear(WIDTH, CLASSES)}
    state = {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    torch.save(state, site.parent / "source.pt")
    job = {"job": "build", "checkpoint": str(site.parent / "source.pt"), "method": "fp16", "gate": {"rows": 4}}
    done = run(
        site, ["-m", "agent.quantization"], json.dumps({**job, "output_dir": str(site.parent / "out"), **fields})
    )
    event: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return event


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The distribution as this process finds it, on its path."""
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("tiny_models", None)


@pytest.mark.e2e
def test_an_installed_type_is_recognised_quantized_and_loaded_in_other_processes(site: Path) -> None:
    announce(site, "broken = no_such_module:X", "tiny = tiny_models:TINY")
    event = build(site, sidecar={"season": "autumn"})
    assert (event["event"], event["model_type"], event["num_classes"]) == ("result", "tiny", CLASSES), event
    assert (event["options"], event["notes"]) == ({"width": WIDTH}, ["told autumn"])
    assert event["coverage"] > 0.9
    assert event["gate"]["cosine"] > 0.999
    loaded = run(site, ["-c", textwrap.dedent(LOAD), event["artifact"]])
    assert loaded.stdout == f"tiny_models [3, {CLASSES}]\n", loaded.stderr
    with pytest.raises(architectures.UnknownModelTypeError, match=r"unknown model type 'tiny'; known: cnn, rnn,"):
        agent.load(event["artifact"])  # this process has no such distribution


@pytest.mark.e2e
def test_a_broken_type_is_an_error_event_with_its_reason(site: Path) -> None:
    announce(site, "tiny = tiny_models:ABSENT")
    event = build(site, model_type="tiny")
    assert (event["event"], event["code"]) == ("error", "unknown_model_type")
    assert "plug-in model type 'tiny' (tiny_models:ABSENT) cannot be used: AttributeError" in event["detail"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tiny = no_such_module:TINY", "cannot be used: ModuleNotFoundError"),
        ("tiny = tiny_models:NO_TYPE", "it is a str, not a ModelType"),
        ("tiny = tiny_models:MISNAMED", "it calls itself 'small'"),
    ],
)
def test_what_is_wrong_with_a_type_is_said_whether_it_was_named_or_not(line: str, said: str, installed: Path) -> None:
    announce(installed, line)
    with pytest.raises(architectures.BrokenPlugInError, match=said):
        architectures.build("tiny", CLASSES)
    with pytest.raises(architectures.UnrecognisedCheckpointError, match=f"no known model type.*{said}"):
        architectures.recognise({"inner.weight": (WIDTH, 16), "outer.weight": (CLASSES, WIDTH)})


def test_no_installed_type_replaces_a_built_in_one(installed: Path) -> None:
    announce(installed, "cnn = tiny_models:TINY")
    assert type(architectures.build("cnn", CLASSES)).__name__ == "SeparableCnn"
    assert architectures.names().count("cnn") == 1
