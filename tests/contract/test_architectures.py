"""Every model type against reference answers.

``data/architectures.json`` lists, per case, the keys and shapes of a state dict, what to build, and what no shape
tells; ``data/architectures_reference.npz`` holds inputs (images as bytes) and the answers to them. The weights are
not stored: they follow from each tensor's name by the rule in ``reference_weights``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agent import architectures
from agent.planning.methods import MIN_PACKED_NUMEL

DATA = Path(__file__).parents[1] / "data"
CASES: dict[str, Any] = json.loads((DATA / "architectures.json").read_text())
BUILDABLE = [name for name, case in CASES.items() if case["options"] is not None]
REFERENCE = np.load(DATA / "architectures_reference.npz")

PLAIN_LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding, nn.LSTM, nn.GRU)
RAW_PARAMETERS = {"pos_embed", "class_token", "prototypes", "codebook.codebook"}


def reference_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Return weights drawn from each key's own seed: rows without a common part, activations near 1."""
    return {key: torch.from_numpy(np.asarray(_values(key, shape))) for key, shape in shapes.items()}


def _values(key: str, shape: list[int]) -> np.ndarray:
    leaf = key.rsplit(".", maxsplit=1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    drawn = np.random.default_rng([zlib.crc32(key.encode()), 0]).standard_normal(shape)
    if len(shape) > 1:
        drawn = _matrix(drawn) if "weight" in leaf else drawn
    else:
        scaled = {"running_var": 0.5 + 0.5 * abs(drawn), "running_mean": 0.2 * drawn, "weight": 1 + 0.3 * drawn}
        drawn = scaled.get(leaf, 0.05 * drawn)
    return np.asarray(drawn, dtype=np.float32)


def _matrix(drawn: np.ndarray) -> np.ndarray:
    axes, fan_in = tuple(range(1, drawn.ndim)), drawn[0].size
    centred: np.ndarray = drawn - drawn.mean(axis=axes, keepdims=True) if fan_in > 1 else drawn
    scaled: np.ndarray = centred * 1.7 / np.sqrt(fan_in)
    return scaled


def reference_inputs(name: str) -> list[Tensor]:
    inputs = []
    for key in CASES[name]["inputs"]:
        values = REFERENCE[f"{name}/{key}"]
        if values.dtype == np.uint8:
            inputs.append(torch.from_numpy(values.astype(np.float32) / 255))
        else:
            inputs.append(torch.from_numpy(values).to(torch.int64 if values.dtype == np.int32 else torch.float32))
    return inputs


def flat_outputs(output: Tensor | dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    if isinstance(output, Tensor):
        return {"logits": output}
    flat: dict[str, Tensor] = {}
    for name, value in output.items():
        flat |= flat_outputs(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def loaded(name: str) -> nn.Module:
    """Return the case's module as a device makes it: recognised, built without memory, weights assigned."""
    case = CASES[name]
    weights = reference_weights(case["state_dict"])
    total = sum(float(tensor.double().abs().sum()) for tensor in weights.values())
    assert total == pytest.approx(case["weights_abs_sum"], rel=1e-5), "numpy draws other numbers than the reference's"
    with torch.device("meta"):
        module = architectures.from_state_dict(weights, case["sidecar"])
    module.load_state_dict(weights, strict=True, assign=True)
    return module.eval()


def assert_close(actual: Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(actual.float(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_the_names_of_model_types_are_known_without_torch() -> None:
    program = "import sys, agent.planning.model_types; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_building_without_memory_does_not_load_the_compiler() -> None:
    program = """
import sys, torch
from agent import architectures
with torch.device("meta"):
    for model_type in architectures.names():
        architectures.build(model_type, 10)
sys.exit(bool({"torch._dynamo", "sympy"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", CASES)
def test_a_recognised_checkpoint_gives_the_reference_answers(name: str) -> None:
    module, inputs = loaded(name), reference_inputs(name)
    hooked: dict[str, Tensor] = {}
    for child, layer in module.named_children():
        layer.register_forward_hook(lambda _m, _i, out, child=child: hooked.__setitem__(f"hook.{child}", out))
    with torch.inference_mode():
        outputs = flat_outputs(module(*inputs))
        if CASES[name]["accepts_flat"]:
            assert_close(module(inputs[0].flatten(1)), REFERENCE[f"{name}/logits"])
    known = {key.split("/", 1)[1] for key in REFERENCE.files if key.startswith(f"{name}/")} - {*CASES[name]["inputs"]}
    assert "logits" in known
    for key in known:
        expected = REFERENCE[f"{name}/{key}"]
        actual = hooked[key][:, : expected.shape[1]] if key.startswith("hook.") else outputs[key]
        assert_close(actual, expected)


@pytest.mark.parametrize("name", CASES)
def test_keys_stand_in_the_order_of_the_checkpoint(name: str) -> None:
    case = CASES[name]
    shapes = {key: tuple(shape) for key, shape in case["state_dict"].items()}
    found = architectures.recognise(shapes, case["sidecar"])
    with torch.device("meta"):
        module = architectures.build(found.model_type, found.num_classes, **found.options)
    assert [(key, tuple(value.shape)) for key, value in module.state_dict().items()] == list(shapes.items())


@pytest.mark.parametrize("name", BUILDABLE)
def test_the_documented_options_build_the_case(name: str) -> None:
    case = CASES[name]
    with torch.device("meta"):
        module = architectures.build(case["model_type"], case["num_classes"], **case["options"])
    assert {key: list(value.shape) for key, value in module.state_dict().items()} == case["state_dict"]


@pytest.mark.parametrize("name", CASES)
def test_normalisations_use_the_epsilon_of_training(name: str) -> None:
    case = CASES[name]
    shapes = {key: tuple(shape) for key, shape in case["state_dict"].items()}
    found = architectures.recognise(shapes, case["sidecar"])
    with torch.device("meta"):
        module = architectures.build(found.model_type, found.num_classes, **found.options)
    normalisations = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)]
    assert all(layer.eps == 1e-5 for layer in normalisations)


@pytest.mark.parametrize("name", CASES)
def test_recognition_names_type_classes_and_unread_tensors(name: str) -> None:
    case = CASES[name]
    shapes = {key: tuple(shape) for key, shape in case["state_dict"].items()}
    found = architectures.recognise(shapes, case["sidecar"], hint=case["model_type"])
    assert found.model_type == case["model_type"]
    assert found.num_classes == case["num_classes"]
    assert json.loads(json.dumps(found.options)) == found.options
    if case["options"] is not None and case["model_type"] != "hiercode":
        assert set(found.unused) == set(case["unused"])


@pytest.mark.parametrize("name", ["hiercode", "hiercode+no-prototypes", "hiercode+small"])
def test_leaving_out_unread_tensors_changes_no_answer(name: str) -> None:
    case = CASES[name]
    shapes = {key: tuple(shape) for key, shape in case["state_dict"].items()}
    found = architectures.recognise(shapes)
    slim = architectures.build(found.model_type, found.num_classes, inference_only=True, **found.options).eval()
    kept = {key: value for key, value in reference_weights(case["state_dict"]).items() if key not in found.unused}
    slim.load_state_dict(kept, strict=True)
    with torch.inference_mode():
        assert_close(slim(*reference_inputs(name)), REFERENCE[f"{name}/logits"])
    again = architectures.recognise({key: tuple(value.shape) for key, value in kept.items()})
    assert again.options["inference_only"]
    assert again.unused == ()


@pytest.mark.parametrize("model_type", architectures.names())
def test_synthetic_inputs_fit_their_specs_and_the_module(model_type: str) -> None:
    module = architectures.build(model_type, 10).eval()
    inputs = architectures.synthetic_inputs(model_type, {}, rows=3, seed=5)
    specs = architectures.input_specs(model_type, {})
    assert list(inputs) == [spec.name for spec in specs]
    for spec, value in zip(specs, inputs.values(), strict=True):
        assert value.dtype == {"FP32": torch.float32, "INT64": torch.int64}[spec.datatype]
        assert all(axis in (-1, size) for axis, size in zip(spec.shape, value.shape, strict=True))
        assert spec.minimum is None or int(value.min()) >= spec.minimum
        assert spec.maximum is None or int(value.max()) <= spec.maximum
    with torch.inference_mode():
        logits = architectures.logits_of(module(*inputs.values()))
    (output, *_others) = architectures.output_specs(model_type, 10)
    assert (output.name, output.datatype, output.shape) == ("logits", "FP32", (-1, 10))
    assert logits.shape == (3, 10)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("model_type", architectures.names())
def test_synthetic_inputs_follow_their_seed(model_type: str) -> None:
    first, again, other = (
        torch.cat([tensor.flatten().float() for tensor in inputs.values()])
        for inputs in (architectures.synthetic_inputs(model_type, {}, 4, seed) for seed in (1, 1, 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("model_type", "options"), [("rnn", {"input_size": 9}), ("rnn-stroke", {"stroke_features": 5})]
)
def test_synthetic_inputs_follow_the_options(model_type: str, options: dict[str, Any]) -> None:
    module = architectures.build(model_type, 4, **options).eval()
    with torch.inference_mode():
        assert module(*architectures.synthetic_inputs(model_type, options, 2, seed=0).values()).shape == (2, 4)


def unequal_lengths(model_type: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    if "lengths" not in inputs:
        return inputs
    longest = int(inputs["lengths"].min())
    assert longest > 1, model_type
    return {**inputs, "lengths": torch.tensor([longest, 1, longest])}


@pytest.mark.parametrize("model_type", architectures.names())
def test_only_batchable_types_answer_a_row_alone_as_in_its_batch(model_type: str) -> None:
    torch.manual_seed(0)
    module = architectures.build(model_type, 10).eval()
    inputs = unequal_lengths(model_type, architectures.synthetic_inputs(model_type, {}, 3, seed=3))
    with torch.inference_mode():
        together = architectures.logits_of(module(*inputs.values()))[1:2]
        alone = architectures.logits_of(module(*(tensor[1:2] for tensor in inputs.values())))
    agrees = torch.allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert agrees == architectures.is_batchable(model_type)


@pytest.mark.parametrize("name", BUILDABLE)
def test_every_large_weight_belongs_to_a_plain_layer(name: str) -> None:
    case = CASES[name]
    with torch.device("meta"):
        module = architectures.build(case["model_type"], case["num_classes"], **case["options"])
    for key, value in module.named_parameters():
        if value.numel() < MIN_PACKED_NUMEL or key in RAW_PARAMETERS:
            continue
        owner = module.get_submodule(key.rpartition(".")[0])
        # The subclass is torch's own output projection inside its attention.
        assert type(owner) in {*PLAIN_LAYERS, nn.MultiheadAttention} or ".out_proj" in f".{key}", key


class Opaque(nn.Module):
    """Computes what a layer computes but has none of its attributes, as a packed layer may."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.call = layer.forward

    def forward(self, *arguments: Any) -> Any:
        return self.call(*arguments)


@pytest.mark.parametrize("model_type", architectures.names())
def test_forward_reaches_weights_only_by_calling_their_layers(model_type: str) -> None:
    module = architectures.build(model_type, 10).eval()
    inputs = tuple(architectures.synthetic_inputs(model_type, {}, 2, seed=0).values())
    with torch.inference_mode():
        expected = architectures.logits_of(module(*inputs))
        for parent in list(module.modules()):
            for child, layer in list(parent.named_children()):
                if type(layer) in PLAIN_LAYERS:
                    setattr(parent, child, Opaque(layer))
        assert not any(type(layer) in PLAIN_LAYERS for layer in module.modules())
        assert torch.equal(architectures.logits_of(module(*inputs)), expected)
