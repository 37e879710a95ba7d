from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest
import torch

from agent import architectures
from agent.architectures import plugins, registry
from agent.architectures.cnn import CNN, hidden_width
from agent.planning import model_types

Shapes = dict[str, tuple[int, ...]]


def shapes_of(model_type: str, num_classes: int = 12, **options: Any) -> Shapes:
    with torch.device("meta"):
        module = architectures.build(model_type, num_classes, **options)
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def announce(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    found = [EntryPoint(name, value, plugins.GROUP) for name, value in entries]
    monkeypatch.setattr(plugins, "entry_points", lambda group: [e for e in found if e.group == group])


def test_the_registry_holds_exactly_the_announced_model_types() -> None:
    assert set(registry.BUILT_IN) == set(model_types.names())
    assert architectures.names()[: len(registry.BUILT_IN)] == model_types.names()
    assert all(kind.name == name for name, kind in registry.BUILT_IN.items())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cnn", ("cnn",)),
        ("hybrid_cnn_rnn", ("rnn-hybrid",)),
        ("radical_rnn", ("rnn-radical", "radical-rnn")),
        ("resnet", ()),
    ],
)
def test_an_alias_names_every_type_it_may_mean(name: str, meant: tuple[str, ...]) -> None:
    assert model_types.named(name) == meant


def test_an_unknown_model_type_is_answered_with_the_known_ones() -> None:
    with pytest.raises(architectures.UnknownModelTypeError, match=r"'resnet'; known: cnn, rnn, .*vit"):
        architectures.build("resnet", 10)


@pytest.mark.parametrize("model_type", [name for name in model_types.names() if name != "rnn-linguistic"])
def test_no_other_type_claims_a_types_tensors(model_type: str) -> None:
    shapes = architectures.Shapes(shapes_of(model_type))
    claiming = {name for name, kind in registry.BUILT_IN.items() if kind.matches(shapes)}
    assert claiming - {"rnn-linguistic"} == {model_type}


def test_a_hint_decides_between_types_with_equal_tensors() -> None:
    shapes = shapes_of("radical-rnn")
    assert architectures.recognise(shapes).model_type == "radical-rnn"
    assert architectures.recognise(shapes, hint="linguistic_radical_rnn").model_type == "rnn-linguistic"


@pytest.mark.parametrize("model_type", ["rnn-radical", "radical-rnn"])
def test_an_ambiguous_alias_leaves_the_decision_to_the_tensors(model_type: str) -> None:
    assert architectures.recognise(shapes_of(model_type), hint="radical_rnn").model_type == model_type


def test_a_contradicting_hint_is_refused_with_what_was_found() -> None:
    with pytest.raises(architectures.ContradictingTypeError, match=r"said to be 'vit', but .* those of 'cnn'"):
        architectures.recognise(shapes_of("cnn"), hint="vit")


def test_a_contradicting_hint_for_foreign_tensors_says_so() -> None:
    with pytest.raises(architectures.ContradictingTypeError, match="those of no known type"):
        architectures.recognise({"fc.weight": (10, 4)}, hint="cnn")


def test_an_unknown_hint_is_answered_with_the_known_types() -> None:
    with pytest.raises(architectures.UnknownModelTypeError, match="'resnet'"):
        architectures.recognise(shapes_of("cnn"), hint="resnet")


def test_foreign_tensors_are_refused_with_their_first_keys() -> None:
    shapes = {f"layer{i}.weight": (4, 4) for i in range(20)}
    with pytest.raises(architectures.UnrecognisedCheckpointError, match=r"20 tensors .*'layer0.weight'.* and 12 more"):
        architectures.recognise(shapes)


def test_an_empty_checkpoint_is_refused() -> None:
    with pytest.raises(architectures.UnrecognisedCheckpointError, match="0 tensors"):
        architectures.recognise({})


@pytest.mark.parametrize("model_type", [name for name in model_types.names() if name != "rnn-linguistic"])
def test_a_missing_tensor_is_refused_by_name(model_type: str) -> None:
    shapes = shapes_of(model_type)
    for lost in (
        registry.BUILT_IN[model_type].classifier_key,
        registry.BUILT_IN[model_type].classifier_key[:-6] + "bias",
    ):
        rest = {key: shape for key, shape in shapes.items() if key != lost}
        with pytest.raises(architectures.UnrecognisedCheckpointError, match=f"'{lost}'"):
            architectures.recognise(rest)


def test_an_additional_tensor_is_refused_by_name() -> None:
    with pytest.raises(architectures.UnrecognisedCheckpointError, match=r"unexpected 'conv1.6.weight'"):
        architectures.recognise({**shapes_of("cnn"), "conv1.6.weight": (3, 3)})


def test_a_misshapen_tensor_is_refused_with_both_shapes() -> None:
    with pytest.raises(architectures.UnrecognisedCheckpointError, match=r"'conv2.1.bias' has shape \[31\] for \[32\]"):
        architectures.recognise({**shapes_of("cnn"), "conv2.1.bias": (31,)})


@pytest.mark.parametrize("shape", [(), (0, 1024)])
def test_a_classifier_without_rows_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(architectures.UnrecognisedCheckpointError, match=r"'classifier.4.weight' has shape"):
        architectures.recognise({**shapes_of("cnn"), "classifier.4.weight": shape})


def test_gates_of_no_known_cell_are_refused_with_their_number() -> None:
    shapes = {**shapes_of("rnn"), "rnn.weight_hh_l0": (512, 256)}
    with pytest.raises(architectures.UnrecognisedCheckpointError, match="512 rows for hidden size 256"):
        architectures.recognise(shapes)


def test_the_hidden_width_grows_with_the_classes_within_bounds() -> None:
    assert [hidden_width(n) for n in (64, 20_499, 20_520, 40_960, 43_427)] == [1024, 1024, 1026, 2048, 2048]


def test_a_cnn_head_of_any_width_is_read_from_its_tensor() -> None:
    shapes = shapes_of("cnn", 43_427, hidden_size=1024)
    assert architectures.recognise(shapes).options["hidden_size"] == 1024


def test_fake_quantization_tensors_of_a_qat_file_are_left_out_and_noted() -> None:
    auxiliary = {
        "quant.activation_post_process.scale": (1,),
        "conv1.0.weight_fake_quant.activation_post_process.eps": (1,),
        "classifier.4.weight_fake_quant.scale": (12,),
    }
    found = architectures.recognise({**shapes_of("qat"), **auxiliary})
    assert (found.model_type, found.num_classes) == ("qat", 12)
    assert set(found.unused) == set(auxiliary)
    assert "3 fake-quantization tensors" in found.notes[0]


def test_fake_quantization_tensors_in_another_type_are_unexpected() -> None:
    with pytest.raises(
        architectures.UnrecognisedCheckpointError, match=r"looks like cnn.*unexpected.*weight_fake_quant"
    ):
        architectures.recognise({**shapes_of("cnn"), "conv1.0.weight_fake_quant.scale": (1,)})


def test_the_stochastic_hiercode_is_refused_with_its_reason() -> None:
    shapes = {key: shape for key, shape in shapes_of("hiercode").items() if not key.startswith("classifier.4")}
    with pytest.raises(architectures.UnrecognisedCheckpointError, match="drawn at random"):
        architectures.recognise({**shapes, "classifier.3.weight": (12, 512), "classifier.3.bias": (12,)})


def test_a_hiercode_with_half_of_its_unread_tensors_is_refused() -> None:
    shapes = {key: shape for key, shape in shapes_of("hiercode").items() if key != "codebook.codebook"}
    with pytest.raises(architectures.UnrecognisedCheckpointError, match=r"'codebook.codebook' is missing"):
        architectures.recognise(shapes)


def test_a_forged_codebook_depth_allocates_nothing() -> None:
    with pytest.raises(architectures.UnrecognisedCheckpointError, match=r"'codebook.routing_weights' has shape"):
        architectures.recognise({**shapes_of("hiercode"), "codebook.routing_weights": (10**9,)})


@pytest.mark.parametrize(("width", "heads"), [(256, 8), (64, 2)])
def test_untold_attention_heads_are_assumed_and_noted(width: int, heads: int) -> None:
    shapes = shapes_of("vit", embedding_dim=width, num_heads=heads, num_transformer_layers=1)
    found = architectures.recognise(shapes)
    assert found.options["num_heads"] == heads
    assert f"assumed {heads}" in found.notes[0]
    assert f"width {width}" in found.notes[0]


def test_told_attention_heads_are_taken_without_a_note() -> None:
    found = architectures.recognise(shapes_of("vit"), {"num_heads": 4})
    assert found.options["num_heads"] == 4
    assert found.notes == ()


@pytest.mark.parametrize("told", [0, 3, -8, True, "8", 2.0])
def test_impossible_attention_heads_are_refused(told: object) -> None:
    with pytest.raises(architectures.UnrecognisedCheckpointError, match="cannot split a width of 256"):
        architectures.recognise(shapes_of("vit"), {"num_heads": told})


def test_a_width_without_default_heads_asks_for_the_sidecar() -> None:
    shapes = shapes_of("vit", embedding_dim=72, num_heads=3, num_transformer_layers=1)
    with pytest.raises(architectures.UnrecognisedCheckpointError, match=r"width 72 .*num_heads"):
        architectures.recognise(shapes)


def test_positions_that_tile_no_image_are_refused_with_their_number() -> None:
    with pytest.raises(architectures.UnrecognisedCheckpointError, match="63 positions"):
        architectures.recognise({**shapes_of("vit"), "pos_embed": (1, 64, 256)})


def test_a_disagreeing_class_count_in_the_sidecar_is_noted_and_overruled() -> None:
    found = architectures.recognise(shapes_of("cnn"), {"num_classes": 3036})
    assert found.num_classes == 12
    assert found.notes == ("the sidecar says 3036 classes, the last layer has 12: the layer is right",)


def test_an_unknown_recurrent_cell_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'elman'; known: lstm, gru"):
        architectures.build("rnn", 4, rnn_type="elman")


@pytest.mark.parametrize("lengths", [[0, 2], [2, 6], [2]])
@pytest.mark.parametrize("model_type", ["rnn-stroke", "rnn-radical"])
def test_lengths_out_of_range_are_refused(model_type: str, lengths: list[int]) -> None:
    module = architectures.build(model_type, 4, hidden_size=16).eval()
    first = architectures.synthetic_inputs(model_type, {}, 2, seed=0)["input"][:, :5]
    with pytest.raises(ValueError, match="length"):
        module(first, torch.tensor(lengths))


@pytest.mark.parametrize("radical", [-1, 500])
def test_a_radical_outside_the_vocabulary_is_refused_with_its_bounds(radical: int) -> None:
    module = architectures.build("rnn-radical", 4, hidden_size=16).eval()
    with pytest.raises(ValueError, match=rf"within .*{radical}.* vocabulary is 0\.\.499"):
        module(torch.tensor([[1, radical]]), torch.tensor([2]))


class Tiny(torch.nn.Module):
    def __init__(self, num_classes: int, features: int) -> None:
        super().__init__()
        self.tiny = torch.nn.Linear(features, num_classes)


def read_tiny(shapes: architectures.Shapes, _sidecar: object) -> architectures.Reading:
    return architectures.Reading({"features": shapes.size("tiny.weight", axis=1)})


TINY = replace(
    CNN,
    name="tiny",
    build=Tiny,
    classifier_key="tiny.weight",
    matches=lambda shapes: "tiny.weight" in shapes,
    read=read_tiny,
)


def test_a_plug_in_builds_and_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in = ModuleType("some_plug_in")
    monkeypatch.setattr(plug_in, "TYPE", TINY, raising=False)
    monkeypatch.setitem(sys.modules, "some_plug_in", plug_in)
    announce(monkeypatch, ("tiny", "some_plug_in:TYPE"))
    assert architectures.names()[-1] == "tiny"
    assert isinstance(architectures.build("tiny", 7, features=2, inference_only=True), Tiny)
    for hint in (None, "tiny"):
        found = architectures.recognise({"tiny.weight": (7, 3), "tiny.bias": (7,)}, hint=hint)
        assert (found.model_type, found.num_classes, found.options) == ("tiny", 7, {"features": 3})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module_anywhere:TYPE", "ModuleNotFoundError"),
        ("agent.architectures.cnn:CHANNELS", "it is a tuple, not a ModelType"),
        ("agent.architectures.cnn:CNN", "it calls itself 'cnn'"),
    ],
)
def test_a_broken_plug_in_is_reported_only_when_used(monkeypatch: pytest.MonkeyPatch, value: str, reason: str) -> None:
    announce(monkeypatch, ("mine", value))
    assert "mine" in architectures.names()
    assert architectures.recognise(shapes_of("cnn")).model_type == "cnn"
    with pytest.raises(architectures.BrokenPlugInError, match=reason):
        architectures.build("mine", 7)
    with pytest.raises(architectures.UnrecognisedCheckpointError, match=reason):
        architectures.recognise({"fc.weight": (10, 4)})


def test_a_plug_in_cannot_replace_a_built_in_type(monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, ("cnn", "no_such_module_anywhere:TYPE"))
    assert architectures.names().count("cnn") == 1
    assert type(architectures.build("cnn", 4)).__name__ == "SeparableCnn"
