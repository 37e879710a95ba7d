"""Hugging Face directories through the builder: small random models of each task, without any download."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent import architectures
from agent.adapters import headers
from agent.architectures import huggingface_config
from agent.architectures.errors import UnrecognisedCheckpointError
from agent.quantization import artifact, gate, huggingface_files, jobs
from agent.quantization.errors import BadCheckpointError, BuildError, UnsafeCheckpointError, UnsupportedError
from agent.quantization.packed import PackedTensor
from agent.quantization.safetensors_header import read_header
from agent.serving import network
from tests.fakes.serving import harness, run

transformers = pytest.importorskip("transformers", minversion="5.0", reason="the extra 'transformers' is not installed")

VOCABULARY = 200
TEXT = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, **TEXT}
GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 64, **TEXT}
LLAMA = {**BERT, "num_key_value_heads": 1, "tie_word_embeddings": True}
VIT = {
    "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128,
    "image_size": 32, "patch_size": 8, "num_labels": 7,
}  # fmt: skip
RESNET = {
    "embedding_size": 64, "hidden_sizes": [64, 64], "depths": [1, 1], "layer_type": "basic", "num_labels": 7,
}  # fmt: skip

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # a test's name: the library's class, its configuration's class, the configuration
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "bert": ("BertModel", "BertConfig", BERT),
    "bert-classifier": ("BertForSequenceClassification", "BertConfig", {**BERT, "num_labels": 5}),
    "vit": ("ViTForImageClassification", "ViTConfig", VIT),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", RESNET),
}
WIDTHS = {"gpt2": VOCABULARY, "llama": VOCABULARY, "bert": 64, "bert-classifier": 5, "vit": 7, "resnet": 7}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test the same weights, and time only one call: the times are not what is tested."""
    torch.manual_seed(0)
    monkeypatch.setattr(gate, "WARM_UP_CALLS", 0)
    monkeypatch.setattr(gate, "LATENCY_CALLS", 1)


def silent(_event: dict[str, Any]) -> None:
    """Drop progress."""


def saved(folder: Path, name: str, **options: Any) -> Any:
    """Save a random model into ``folder`` as the library does; returns it."""
    kind, config, sizes = MODELS[name]
    model = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)  # the library's 0.02 would make all answers alike
    model.save_pretrained(folder, **options)
    return model


def built(folder: Path, method: str = "fp32", **fields: Any) -> dict[str, Any]:
    job = {"job": "build", "checkpoint": str(folder), "method": method, "output_dir": str(folder.parent / "out")}
    return jobs.run({**job, "gate": {"rows": 4}, **fields}, silent)


def pooled(steps: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([row[: int(valid.sum())].mean(dim=0) for row, valid in zip(steps, mask, strict=True)])


def library_answer(name: str, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return what the library's own model answers, put into a row a sample by hand."""
    output = model(pixel_values=inputs["input"]) if name in {"vit", "resnet"} else model(**inputs)
    if name == "bert":
        return pooled(output.last_hidden_state, inputs["attention_mask"])
    logits: Tensor = output.logits
    if logits.dim() == 2:
        return logits
    mask = inputs["attention_mask"]
    return torch.stack([row[int(valid.sum()) - 1] for row, valid in zip(logits, mask, strict=True)])


@pytest.mark.parametrize("name", MODELS)
def test_an_fp32_artifact_answers_as_the_library_without_the_directory(name: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "source", name)
    result = built(tmp_path / "source")
    shutil.rmtree(tmp_path / "source")
    assert (result["model_type"], result["num_classes"]) == ("hf", WIDTHS[name])
    assert result["gate"]["agreement"] == 1.0
    inputs = architectures.synthetic_inputs("hf", result["options"], 3, seed=5)
    with torch.inference_mode():
        got = artifact.load(result["artifact"], "cpu")(*inputs.values())
        wanted = library_answer(name, model, inputs)
    assert got.shape == (3, WIDTHS[name])
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_four_bits_take_every_heavy_layer_and_stay_close_to_the_source(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "source", name)
    result = built(tmp_path / "source", "nf4")
    assert result["gate"]["cosine"] > 0.8, "each of up to a dozen layers adds an error of a tenth"
    assert result["gate"]["non_finite"] == 0
    large = [item for item in result["skipped"] if item["numel"] >= 4096 and "vector" not in item["reason"]]
    assert large == []
    assert result["resident_bytes"] < result["source_tensor_bytes"] / 4, "so small a model has many small tensors"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tied_weights_are_one_tensor_in_the_artifact_and_in_memory(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "source", name)
    result = built(tmp_path / "source", "nf4")
    held = read_header(Path(result["artifact"])).tensors
    assert [key for key in held if key.startswith("network.lm_head.")] == []
    model: Any = artifact.load(result["artifact"], "cpu")
    embedding, head = model.network.get_input_embeddings().weight, model.network.lm_head.weight
    assert isinstance(embedding, PackedTensor)
    assert embedding is head


def test_buffers_that_no_file_holds_are_computed_without_a_second_copy_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "source", "llama")
    result = built(tmp_path / "source", "nf4")
    made: list[bool] = []
    register = torch.nn.Module.register_parameter

    def watched(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        made.append(parameter is None or parameter.is_meta or parameter.numel() < 4096)
        register(module, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", watched)
    model: Any = artifact.load(result["artifact"], "cpu")
    assert made
    assert all(made)
    assert not model.network.model.rotary_emb.inv_freq.is_meta


def test_shards_are_read_like_one_file(tmp_path: Path) -> None:
    model = saved(tmp_path / "source", "bert")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    whole, parts = (huggingface_files.open_files(tmp_path / name) for name in ("source", "shards"))
    assert parts.shapes == whole.shapes
    assert all(torch.equal(parts.entries[name].read(), entry.read()) for name, entry in whole.entries.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sources_make_float32_networks(dtype: torch.dtype, tmp_path: Path) -> None:
    model = saved(tmp_path / "whole", "bert").to(dtype)
    model.save_pretrained(tmp_path / "source")
    result = built(tmp_path / "source")
    loaded = artifact.load(result["artifact"], "cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert result["artifact_bytes"] > 1.9 * result["source_tensor_bytes"]


def test_a_checkpoint_with_a_classifier_keeps_its_pooler_and_a_bare_encoder_loses_it(tmp_path: Path) -> None:
    saved(tmp_path / "bare", "bert")
    saved(tmp_path / "head", "bert-classifier")
    bare, head = (huggingface_files.open_files(tmp_path / name) for name in ("bare", "head"))
    found = architectures.recognise(bare.shapes, bare.told, bare.hint)
    assert found.unused == ("network.pooler.dense.bias", "network.pooler.dense.weight")
    found = architectures.recognise(head.shapes, head.told, head.hint)
    assert found.unused == ()


@pytest.mark.parametrize(
    ("name", "answer"), [("bert", "embedding"), ("bert-classifier", "classes"), ("vit", "classes")]
)
def test_the_gate_compares_classes_or_neighbours_as_the_task_has_them(name: str, answer: str, tmp_path: Path) -> None:
    saved(tmp_path / "source", name)
    result = built(tmp_path / "source", "nf4", gate={"rows": 40})
    measured = result["gate"]
    assert (measured["answer"], measured["kl"] is None) == (answer, answer == "embedding")
    assert 0 < measured["agreement"] <= 1
    assert architectures.answer_of("hf", result["options"]) == answer
    expected = load_file(result["gate_file"])["expected"]
    wanted = (torch.float32, (40, 64)) if answer == "embedding" else (torch.int64, (40,))
    assert (expected.dtype, tuple(expected.shape)) == wanted


def test_two_texts_are_too_few_for_neighbours(tmp_path: Path) -> None:
    saved(tmp_path / "source", "bert")
    measured = built(tmp_path / "source", gate={"rows": 2})["gate"]
    assert (measured["rows"], measured["agreement"]) == (2, None)
    assert measured["cosine"] == pytest.approx(1.0)


def test_labels_beside_texts_to_embed_are_not_read(tmp_path: Path) -> None:
    saved(tmp_path / "source", "bert")
    ids = torch.arange(1, 41).reshape(8, 5)
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full((8,), 10**6)}
    save_file(data, tmp_path / "data")
    result = built(tmp_path / "source", gate={"dataset": str(tmp_path / "data")})
    measured = result["gate"]
    assert (measured["rows"], measured["inputs"], measured["agreement"]) == (8, "dataset", 1.0)
    assert measured["accuracy"] is measured["accuracy_source"] is None
    assert "labels" not in load_file(result["gate_file"])


def test_the_canary_of_an_embedding_finds_the_neighbours_that_the_gate_found(tmp_path: Path) -> None:
    saved(tmp_path / "source", "bert")
    result = built(tmp_path / "source", "fp4", gate={"rows": 40})

    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", network.load(Path(result["artifact"]), "cpu"))
            measured = (await it.change("m", "canary", release="r1", gate=result["gate_file"])).json()
            assert (measured["answer"], measured["accuracy"], measured["non_finite"]) == ("embedding", None, 0)
            # The server computes in batches of another size; a neighbour may hang by the last bits.
            assert measured["agreement"] == pytest.approx(result["gate"]["agreement"], abs=0.05)

    assert result["gate"]["agreement"] < 1.0, "a method that keeps everything would show nothing"
    run(scenario)


POSITIONS = 32


@pytest.mark.parametrize(
    ("name", "sizes", "most"),
    [
        ("bert-classifier", {"max_position_embeddings": POSITIONS}, POSITIONS),
        ("gpt2", {"n_positions": POSITIONS}, POSITIONS),
        ("llama", {"max_position_embeddings": POSITIONS}, POSITIONS),
        ("roberta", {"max_position_embeddings": POSITIONS}, POSITIONS - 2),  # counted from behind the padding's, 1
    ],
)
def test_ids_and_mask_of_two_lengths_or_longer_than_the_positions_are_refused_with_both_numbers(
    name: str, sizes: dict[str, int], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roberta = ("RobertaForSequenceClassification", "RobertaConfig", {**BERT, "pad_token_id": 1, "num_labels": 5})
    kind, config, given = {**MODELS, "roberta": roberta}[name]
    monkeypatch.setitem(MODELS, name, (kind, config, {**given, **sizes}))
    saved(tmp_path / "source", name)
    result = built(tmp_path / "source")

    async def scenario() -> None:
        async with harness() as it:
            await it.serve("m", network.load(Path(result["artifact"]), "cpu"))

            async def ask(ids: int, mask: int) -> Any:
                inputs = [
                    {"name": key, "datatype": "INT64", "shape": [1, size], "data": [1] * size}
                    for key, size in (("input_ids", ids), ("attention_mask", mask))
                ]
                return await it.data.post("/v2/models/m/infer", json={"inputs": inputs})

            assert (await ask(most, most)).status_code == 200
            for ids, mask, said in (
                (3, 5, "the inputs differ in sequence: 'input_ids' has 3, 'attention_mask' has 5"),
                (3, 2, "the inputs differ in sequence: 'input_ids' has 3, 'attention_mask' has 2"),
                (3, 1, "the inputs differ in sequence: 'input_ids' has 3, 'attention_mask' has 1"),
                (most + 1, most + 1, f"input 'input_ids' has sequence {most + 1}, the model takes at most {most}"),
            ):
                refused = await ask(ids, mask)
                assert (refused.status_code, refused.json()["error"]) == (400, said)
            metadata = (await it.data.get("/v2/models/m")).json()
            assert metadata["properties"]["max_sequence"] == str(most)

    run(scenario)


def test_a_data_set_of_longer_texts_than_the_positions_is_refused_with_both_numbers(tmp_path: Path) -> None:
    saved(tmp_path / "source", "gpt2")
    ids = torch.ones((8, 65), dtype=torch.int64)
    save_file({"input_ids": ids, "attention_mask": ids.clone()}, tmp_path / "data")
    with pytest.raises(BadCheckpointError, match="has sequence 65, the model takes at most 64"):
        built(tmp_path / "source", gate={"dataset": str(tmp_path / "data")})
    save_file({"input_ids": ids[:, :5].clone(), "attention_mask": ids[:, :3].clone()}, tmp_path / "data")
    with pytest.raises(BadCheckpointError, match="has sequence 3, the inputs before it 5"):
        built(tmp_path / "source", gate={"dataset": str(tmp_path / "data")})


def test_how_a_sentence_becomes_a_vector_is_read_from_the_directory(tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "source", "bert"), tmp_path / "source"
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_cls_token": true, "word_embedding_dimension": 64}'
    )
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Normalize")]
    (folder / "modules.json").write_text(json.dumps(modules))
    result = built(folder)
    assert (result["options"]["pooling"], result["options"]["is_normalised"]) == ("cls", True)
    inputs = architectures.synthetic_inputs("hf", result["options"], 3, seed=5)
    with torch.inference_mode():
        first = model(**inputs).last_hidden_state[:, 0]
        got = artifact.load(result["artifact"], "cpu")(*inputs.values())
    assert torch.allclose(got, first / first.norm(dim=1, keepdim=True), atol=1e-5)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(UnrecognisedCheckpointError, match=r"pooling_mode_max_tokens.*known: mean, cls"):
        built(folder)
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(BadCheckpointError, match="Dense behind the encoder"):
        built(folder)


def edited(folder: Path, **changes: Any) -> None:
    """Change keys of a directory's configuration; None takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": None}, "its architectures are None"),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM .* none of image-classification"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel of configuration type 'bert'"),
        ({"architectures": ["os.system"]}, "os.system of configuration type 'bert'"),
        ({"model_type": "my-own"}, "refuses the configuration: Unrecognized model identifier: my-own"),
        ({"model_type": None}, "model_type is None"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"hidden_size": 63}, "cannot build BertModel"),
        ({"num_hidden_layers": 1}, "does not fit: unexpected 'network.encoder.layer.1"),
        ({"intermediate_size": 96}, r"has shape \[128, 64\] for \[96, 64\]"),
    ],
)
def test_a_configuration_that_is_not_the_weights_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(tmp_path / "source", "bert")
    edited(tmp_path / "source", **changes)
    with pytest.raises(UnrecognisedCheckpointError, match=said):
        built(tmp_path / "source")


def test_code_in_a_directory_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    saved(folder, "bert")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass BertModel: ...\n")
    edited(folder, auto_map={"AutoConfig": "evil.BertConfig", "AutoModel": "evil.BertModel"})
    result = built(folder)
    assert "auto_map" not in result["options"]["config"]
    assert not (tmp_path / "ran").exists()


def test_private_keys_and_dtypes_of_a_configuration_are_dropped_at_every_depth() -> None:
    given = {**BERT, "model_type": "bert", "architectures": ["BertModel"], "torch_dtype": "float16",
             "_attn_implementation": "someone/kernel", "_name_or_path": "/home/me"}  # fmt: skip
    config = huggingface_config.resolve(given)
    assert not [key for key in config if key.startswith("_") or "dtype" in key or "attn_implementation" in key]
    assert config["layer_norm_eps"] == 1e-12, "defaults are spelt out"
    assert huggingface_config.resolve(config) == config


@pytest.mark.parametrize(
    ("index", "error", "said"),
    [
        ({"a": "../../etc/model.safetensors"}, UnsafeCheckpointError, "none of its directory"),
        ({"a": "/etc/passwd"}, UnsafeCheckpointError, "none of its directory"),
        ({"a": ".hidden.safetensors"}, UnsafeCheckpointError, "none of its directory"),
        ({"a": "absent.safetensors"}, BadCheckpointError, "absent.safetensors, which is missing"),
        ({"nothing": "part.safetensors"}, BadCheckpointError, "differ in 40 tensors"),
        ({}, BadCheckpointError, "no weight_map"),
    ],
)
def test_an_index_that_leads_astray_is_refused(
    index: dict[str, str], error: type[BuildError], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    saved(folder, "bert")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(error, match=said):
        built(folder)


def test_a_directory_without_safetensors_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(BadCheckpointError, match=r"config.json is missing; there are no files"):
        built(tmp_path / "source")
    (tmp_path / "source" / "config.json").write_text("{}")
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadCheckpointError, match=r"beside config.json, but config.json, pytorch_model.bin"):
        built(tmp_path / "source")
    (tmp_path / "source" / "config.json").write_text("[" * 100_000)
    with pytest.raises(BadCheckpointError, match="is not JSON"):
        built(tmp_path / "source")


def test_the_digest_of_a_directory_follows_every_file_that_is_read_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    saved(folder, "bert")
    before = huggingface_files.digest(folder)
    (folder / "README.md").write_text("other")
    assert huggingface_files.digest(folder) == before
    edited(folder, layer_norm_eps=1e-6)
    assert huggingface_files.digest(folder) != before


def test_without_the_library_a_directory_is_unsupported_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "source", "bert")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedError) as caught:
        built(tmp_path / "source")
    assert (caught.value.code, caught.value.hint) == ("unsupported", "pip install 'nibbled[transformers]'")


def test_a_library_of_before_version_5_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.57.1")
    with pytest.raises(architectures.ArchitectureError, match=r"5 or later is needed, 4\.57\.1 is installed"):
        huggingface_config.library()


def test_inspecting_a_directory_reads_no_weight(tmp_path: Path) -> None:
    saved(tmp_path / "source", "vit")
    result = jobs.run({"job": "inspect", "checkpoint": str(tmp_path / "source")}, silent)
    assert (result["model_type"], result["num_classes"]) == ("hf", 7)
    assert "network.vit.layers.0.attention.q_proj.weight" in [tensor["name"] for tensor in result["tensors"]]


def test_an_artifact_of_a_directory_exports_to_onnx_like_any_other(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    saved(tmp_path / "source", "bert")
    path = built(tmp_path / "source", "nf4")["artifact"]
    result = jobs.run({"job": "export", "artifact": path, "output": str(tmp_path / "bert.onnx")}, silent)
    assert result["max_difference"] < 1e-3
    assert [spec["name"] for spec in result["inputs"]] == ["input_ids", "attention_mask"]


def test_a_decoder_that_classifies_needs_a_padding_id_to_find_the_ends_of_texts(tmp_path: Path) -> None:
    config = transformers.GPT2Config(**{**GPT2, "num_labels": 3})
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "source")
    assert built(tmp_path / "source")["num_classes"] == 3
    edited(tmp_path / "source", pad_token_id=None)
    with pytest.raises(UnrecognisedCheckpointError, match="needs pad_token_id in its configuration"):
        built(tmp_path / "source")


def packed(folder: Path, kind: str) -> Path:
    """Pack a directory into one file that tells its kind by its content alone."""
    path = folder.parent / "one-file"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"any-length-of-name/{file.name}")
        return path
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname="." if kind == "tar" else "some-model")
    return path


@pytest.mark.parametrize("kind", ["tar", "tar with a folder", "zip"])
def test_an_archive_gives_the_artifact_of_its_directory(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "source", "bert-classifier")
    from_directory = Path(built(tmp_path / "source", "nf4")["artifact"]).read_bytes()
    result = built(packed(tmp_path / "source", kind), "nf4")
    assert result["model_type"] == "hf"
    assert Path(result["artifact"]).read_bytes() == from_directory
    assert headers.numels(tmp_path / "one-file") == headers.numels(tmp_path / "source")


def test_an_archive_of_shards_is_read_as_one_model(tmp_path: Path) -> None:
    model = saved(tmp_path / "source", "gpt2", max_shard_size="100KB")
    result = built(packed(tmp_path / "source", "tar"))
    held = {file.name for file in (tmp_path / "source").glob("*.safetensors")}
    assert len(held) > 1
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        want = model(input_ids=ids).logits[:, -1]
        got = artifact.load(result["artifact"], "cpu")(ids, torch.ones_like(ids))
    assert torch.allclose(got, want, atol=1e-4)


def test_the_digest_of_an_archive_is_that_of_the_file(tmp_path: Path) -> None:
    saved(tmp_path / "source", "bert")
    path = packed(tmp_path / "source", "tar")
    assert huggingface_files.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
