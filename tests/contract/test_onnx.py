"""Artifacts as ONNX files, answered by ONNX Runtime: every type, other batches and lengths, and what is refused."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from agent import architectures
from agent.planning import model_types
from agent.quantization import artifact, gate, jobs, onnx, onnx_forms
from agent.quantization.errors import BuildError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")

CLASSES = 40
SMALL: dict[str, dict[str, Any]] = {
    "rnn": {"num_layers": 1, "hidden_size": 64},
    "vit": {"num_transformer_layers": 2},
    "radical-rnn": {"rnn_num_layers": 1},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test the same weights, and time only one call: the times are not what is tested."""
    torch.manual_seed(0)
    monkeypatch.setattr(gate, "WARM_UP_CALLS", 0)
    monkeypatch.setattr(gate, "LATENCY_CALLS", 1)


def silent(_event: dict[str, Any]) -> None:
    """Drop progress."""


def built(folder: Path, model_type: str, **options: Any) -> Path:
    """Return the nf4 artifact of a fresh model, its attention made sharp: a soft one forgives steps too many."""
    weights = architectures.build(model_type, CLASSES, **options).state_dict()
    for name in weights:
        if name.endswith(("attention.in_proj_weight", "stroke_embedding.weight")):
            weights[name] *= 20
    torch.save(weights, folder / "source")
    job = {"job": "build", "checkpoint": str(folder / "source"), "model_type": model_type, "method": "nf4"}
    result = jobs.run({**job, "output_dir": str(folder / "out"), "gate": {"rows": 2}}, silent)
    return Path(result["artifact"])


def exported(path: Path, **fields: Any) -> dict[str, Any]:
    job = {"job": "export", "artifact": str(path), "output": str(path.with_suffix(".onnx")), **fields}
    return jobs.run(job, silent)


def answer(file: str, *inputs: Tensor) -> Tensor:
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    return torch.from_numpy(logits)


def relative_gap(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("model_type", model_types.names())
def test_every_type_exports_and_answers_as_its_artifact_which_stays_as_it_was(model_type: str, tmp_path: Path) -> None:
    path = built(tmp_path, model_type, **SMALL.get(model_type, {}))
    before = path.read_bytes()
    result = exported(path)
    sidecar = artifact.load_sidecar(path)
    assert path.read_bytes() == before
    assert result["max_difference"] <= onnx.MAX_DIFFERENCE
    assert result["bytes"] == Path(result["onnx"]).stat().st_size
    assert (result["opset"], result["inputs"], result["outputs"]) == (20, sidecar["inputs"], sidecar["outputs"])
    model = artifact.load(path, "cpu")
    for inputs in (architectures.synthetic_inputs(model_type, sidecar["options"], 3, seed=9).values(), *other(sidecar)):
        with torch.inference_mode():
            wanted = architectures.logits_of(model(*inputs))
        assert relative_gap(answer(result["onnx"], *inputs), wanted) <= 1e-5


def other(sidecar: dict[str, Any]) -> Iterator[tuple[Tensor, ...]]:
    """Yield sequences of other lengths than a trace sees, padded further than their longest too."""
    for batch, time, lengths in ((1, 7, [4]), (3, 45, [45, 1, 20]), (2, 9, [3, 5])):
        if sidecar["model_type"] == "rnn":
            yield (torch.rand(batch, time, 4),)
        elif sidecar["model_type"] == "rnn-stroke":
            yield torch.rand(batch, time, 8), torch.tensor(lengths)
        elif sidecar["model_type"] == "rnn-radical":
            yield torch.randint(0, 500, (batch, time)), torch.tensor(lengths)


class EveryRecurrentLayer(nn.Module):
    """Gives all outputs and final states of layers of each kind in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.GRU(6, 5, num_layers=2, batch_first=True, bidirectional=True),
                nn.GRU(6, 5, bias=False),
                nn.LSTM(6, 5, num_layers=2, batch_first=True),
                nn.LSTM(6, 5, bidirectional=True),
                nn.RNN(6, 5, nonlinearity="relu", bidirectional=True),
                nn.RNN(6, 5, batch_first=True),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for layer in self.layers:
            outputs, final = layer(x)
            parts += [outputs, *(final if isinstance(final, tuple) else (final,))]
        return torch.cat([part.flatten() for part in parts])


def test_every_recurrent_layer_has_an_operator_with_its_outputs_and_final_states(tmp_path: Path) -> None:
    steps, model = torch.rand(4, 3, 6), EveryRecurrentLayer().eval()
    wanted = model(steps).detach()
    form = onnx_forms.graph_form(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter itself
        program = torch.onnx.export(form, (steps,), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "layers.onnx")
    assert relative_gap(answer(str(tmp_path / "layers.onnx"), steps), wanted) < 1e-5


def test_a_packed_sequence_inside_a_model_is_said_to_have_no_form() -> None:
    form = onnx_forms.GraphRecurrent(nn.LSTM(6, 5, batch_first=True))
    packed = pack_padded_sequence(torch.rand(2, 4, 6), torch.tensor([4, 2]), batch_first=True)
    with pytest.raises(UnsupportedError, match="packed sequence"):
        form(packed)
    with pytest.raises(UnsupportedError, match="projects its 5 outputs to 3"):
        onnx_forms.GraphRecurrent(nn.LSTM(6, 5, proj_size=3))


def test_a_file_that_answers_differently_is_refused_with_the_figure_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            model.get_parameter("classifier.weight").mul_(1.01)
        return model

    path = built(tmp_path, "hiercode-higita")
    monkeypatch.setattr(onnx, "graph_form", wrong)
    with pytest.raises(BuildError, match=r"differs from the artifact by \d\.\d\de-0\d"):
        exported(path)
    assert not path.with_suffix(".onnx").exists()


@pytest.mark.parametrize("opset", [17, 23])
def test_an_opset_that_not_every_type_has_a_form_in_is_refused_with_those_that_do(opset: int, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        onnx.export(tmp_path / "none.safetensors", tmp_path / "none.onnx", opset)
    assert caught.value.hint == "use one of 18 to 22"


@pytest.mark.parametrize("field", [{"opset": "20"}, {"opset": True}, {"check": 1}, {"output": ""}])
def test_a_job_with_the_wrong_kinds_of_values_is_refused(field: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(jobs.BadJobError):
        exported(tmp_path / "none.safetensors", **field)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_unsupported_with_the_line_that_installs_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedError, match=package) as caught:
        exported(tmp_path / "none.safetensors")
    assert (caught.value.code, caught.value.hint) == ("unsupported", "pip install 'nibbled[onnx]'")
