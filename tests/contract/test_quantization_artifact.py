"""From a checkpoint to an artifact and back, for every model type, within one process."""

from __future__ import annotations

import json
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import agent
from agent import architectures
from agent.planning.methods import METHODS
from agent.quantization import artifact, checkpoint, failures, gate, jobs, kernels, modules, process, quantizer, sidecar
from agent.quantization.artifact import ArtifactError
from agent.quantization.assignment import Scheme
from agent.quantization.errors import (
    BadCheckpointError,
    InsufficientDiskError,
    InsufficientMemoryError,
    ModelTypeError,
    NonFiniteWeightsError,
    UnsupportedMethodError,
)
from agent.quantization.packed import PackedTensor
from agent.quantization.safetensors_header import read_header
from agent.quantization.tensor_file import TensorFileWriter

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = 300
FULL_CLASSES = 3036
LEAST_SHRINKING = 7.2


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test the same weights, and time only two calls: the times are not what is tested."""
    torch.manual_seed(0)
    monkeypatch.setattr(gate, "WARM_UP_CALLS", 0)
    monkeypatch.setattr(gate, "LATENCY_CALLS", 2)


def silent(_event: dict[str, Any]) -> None:
    """Drop progress."""


def trained(model_type: str, classes: int = CLASSES, **options: Any) -> nn.Module:
    """Return a model whose normalisation statistics are not those of a fresh one."""
    model = architectures.build(model_type, classes, **options).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


def job(folder: Path, content: Any, **fields: Any) -> dict[str, Any]:
    torch.save(content, folder / "source")
    defaults = {
        "job": "build",
        "checkpoint": str(folder / "source"),
        "method": "nf4-dq",
        "output_dir": str(folder / "out"),
    }
    return {**defaults, "gate": {"rows": 8}, **fields}


def built(folder: Path, model: nn.Module, **fields: Any) -> dict[str, Any]:
    return jobs.run(job(folder, model.state_dict(), **fields), silent)


@pytest.mark.parametrize("model_type", architectures.names())
def test_every_type_comes_back_from_an_fp32_artifact_bit_for_bit(model_type: str, tmp_path: Path) -> None:
    model = trained(model_type)
    result = built(tmp_path, model, method="fp32", model_type=model_type)
    loaded = agent.load(result["artifact"], "cpu")
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    inputs = architectures.synthetic_inputs(result["model_type"], result["options"], 3, 1).values()
    with torch.inference_mode():
        got, want = (architectures.logits_of(network(*inputs)) for network in (loaded, model))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", architectures.names())
def test_every_type_is_at_least_seven_times_smaller_in_the_file_and_in_memory(model_type: str, tmp_path: Path) -> None:
    result = built(tmp_path, trained(model_type, FULL_CLASSES), model_type=model_type, gate={"rows": 1})
    assert result["source_tensor_bytes"] / result["artifact_bytes"] >= LEAST_SHRINKING
    assert result["source_tensor_bytes"] / result["resident_bytes"] >= LEAST_SHRINKING
    assert result["coverage"] > 0.99
    assert result["artifact_bytes"] == (tmp_path / "out" / result["artifact"].rpartition("/")[2]).stat().st_size


@pytest.mark.parametrize("method", METHODS)
def test_a_packed_artifact_loads_with_the_bits_of_the_file(method: str, tmp_path: Path) -> None:
    result = built(tmp_path, trained("cnn"), method=method)
    state = agent.load(result["artifact"], "cpu").state_dict()
    stored = {name: value for name, value in load_file(result["artifact"]).items() if not name.startswith("nibbled.")}
    assert set(state) == set(stored)
    assert all(torch.equal(state[name], value) and state[name].dtype == value.dtype for name, value in stored.items())


@pytest.mark.parametrize("method", METHODS)
def test_the_file_is_named_after_model_type_and_method(method: str, tmp_path: Path) -> None:
    result = built(tmp_path, trained("cnn"), method=method)
    name = f"cnn_{METHODS[method].file_tag}"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [f"{name}.json", f"{name}.safetensors", "gate.safetensors"]
    )
    assert result["artifact"].endswith(f"{name}.safetensors")


def test_two_builds_of_one_checkpoint_give_the_same_file(tmp_path: Path) -> None:
    model = trained("cnn")
    first = built(tmp_path, model, output_dir=str(tmp_path / "one"))
    second = built(tmp_path, model, output_dir=str(tmp_path / "two"))
    with open(first["artifact"], "rb") as one, open(second["artifact"], "rb") as two:  # noqa: PTH123 - paths are texts here
        assert one.read() == two.read()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_source_precisions_are_read_and_answer_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: v.to(dtype) if v.is_floating_point() else v for key, v in trained("cnn").state_dict().items()}
    result = jobs.run(job(tmp_path, state), silent)
    assert result["source_tensor_bytes"] == sum(value.nbytes for value in state.values())
    with torch.inference_mode():
        assert agent.load(result["artifact"], "cpu")(torch.rand(1, 1, 64, 64)).dtype == torch.float32


def test_parts_that_forward_never_reads_stay_out_and_the_sidecar_names_them(tmp_path: Path) -> None:
    result = built(tmp_path, trained("hiercode"))
    sidecar = artifact.load_sidecar(result["artifact"])
    assert "prototypes" in sidecar["unused"]
    assert not any(
        "prototypes" in name or name == "codebook.codebook" for name in read_header_names(result["artifact"])
    )


def read_header_names(path: str) -> list[str]:
    return list(load_file(path))


def test_fake_quantization_tensors_are_left_out_and_the_result_says_so(tmp_path: Path) -> None:
    state = trained("qat").state_dict()
    state["quant.activation_post_process.scale"] = torch.ones(1)
    state["conv1.0.weight_fake_quant.zero_point"] = torch.zeros(1, dtype=torch.int32)
    result = jobs.run(job(tmp_path, state), silent)
    assert result["model_type"] == "qat"
    assert "2 fake-quantization tensors" in result["notes"][0]


def test_the_sidecar_says_what_a_server_needs(tmp_path: Path) -> None:
    result = built(tmp_path, trained("cnn"), blocksize=128)
    sidecar = artifact.load_sidecar(result["artifact"])
    assert (
        sidecar["inputs"][0] | {"name": "input", "datatype": "FP32", "shape": [-1, 1, 64, 64]} == sidecar["inputs"][0]
    )
    assert sidecar["outputs"][0]["shape"] == [-1, CLASSES]
    assert (sidecar["method"], sidecar["blocksize"], sidecar["double_quant"]) == ("nf4-dq", 128, True)
    assert sidecar["batchable"] is True
    assert len(sidecar["source_sha256"]) == 64
    assert sidecar["gate"] == result["gate"]
    assert sidecar["resident_bytes"] == result["resident_bytes"]


def test_types_whose_rows_depend_on_each_other_are_marked(tmp_path: Path) -> None:
    result = built(tmp_path, trained("rnn-stroke"))
    assert artifact.load_sidecar(result["artifact"])["batchable"] is False


def test_the_gate_file_holds_the_inputs_and_the_sources_top_classes(tmp_path: Path) -> None:
    model = trained("rnn-stroke")
    result = built(tmp_path, model)
    tensors = load_file(result["gate_file"])
    inputs = architectures.synthetic_inputs("rnn-stroke", result["options"], 8, 0)
    assert all(torch.equal(tensors[name], value) for name, value in inputs.items())
    with torch.inference_mode():
        alone = [architectures.logits_of(model(*(v[i : i + 1] for v in inputs.values()))) for i in range(8)]
    assert torch.equal(tensors["expected"], torch.cat(alone).argmax(dim=1))


def test_building_needs_less_memory_than_one_copy_of_the_largest_weight(tmp_path: Path) -> None:
    torch.save(architectures.build("cnn", 30_000).state_dict(), tmp_path / "source")
    opened = checkpoint.open_checkpoint(tmp_path / "source")
    found = architectures.recognise(opened.shapes)
    largest = max(entry.stored_bytes for entry in opened.entries.values())
    kernels.pack_4bit(torch.ones(2 * kernels.CHUNK_NUMEL), "nf4", 64)  # whatever the first call keeps
    base, peak, done = process.anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], process.anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    path = tmp_path / "artifact"
    scheme = Scheme.uniform(METHODS["nf4-dq"])
    quantizer.quantize(opened, found, path, scheme, blocksize=64, progress=lambda _done, _total: None)
    done.set()
    watcher.join()
    assert peak[0] - base < path.stat().st_size + largest


def test_progress_counts_every_tensor_once(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    jobs.run(job(tmp_path, trained("cnn").state_dict()), events.append)
    total = len(trained("cnn").state_dict())
    assert [event["done"] for event in events] == list(range(1, total + 1))
    assert {event["total"] for event in events} == {total}


def test_an_evaluation_set_of_half_floats_is_cut_down_to_the_same_rows_each_time(tmp_path: Path) -> None:
    inputs = torch.rand(20, 1, 64, 64).half()
    save_file({"inputs": inputs, "labels": torch.arange(20)}, tmp_path / "data")
    found = architectures.Recognised("cnn", CLASSES, {})
    data = gate.evaluation(found, tmp_path / "data", 5, 7)
    again = gate.evaluation(found, tmp_path / "data", 5, 7)
    assert data.labels is not None
    assert data.rows == 5
    assert data.inputs["input"].dtype == torch.float32
    assert torch.equal(data.inputs["input"], inputs[data.labels].float())
    assert again.labels is not None
    assert torch.equal(again.labels, data.labels)


def test_labels_give_accuracies_of_source_and_result(tmp_path: Path) -> None:
    model = trained("cnn")
    inputs = torch.rand(12, 1, 64, 64)
    with torch.inference_mode():
        labels = architectures.logits_of(model(inputs)).argmax(dim=1)
    labels = labels.clone()
    labels[:3] = (labels[:3] + 1) % CLASSES
    save_file({"inputs": inputs, "labels": labels}, tmp_path / "data")
    measured = built(tmp_path, model, method="fp32", gate={"dataset": str(tmp_path / "data"), "rows": 256})["gate"]
    assert (measured["rows"], measured["inputs"]) == (12, "dataset")
    assert measured["accuracy_source"] == measured["accuracy"] == 0.75
    assert measured["agreement"] == 1.0


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"images": torch.rand(2, 1, 64, 64)}, "no tensor 'input' or 'inputs'"),
        ({"inputs": torch.rand(2, 4096)}, r"shape \[2, 4096\]"),
        ({"inputs": torch.zeros(2, 1, 64, 64, dtype=torch.int64)}, "int64"),
        ({"inputs": torch.rand(0, 1, 64, 64)}, "number of rows"),
        ({"inputs": torch.rand(2, 1, 64, 64), "labels": torch.tensor([0, CLASSES])}, f"0 to {CLASSES}"),
        ({"inputs": torch.rand(2, 1, 64, 64), "labels": torch.tensor([0])}, "labels are"),
    ],
)
def test_evaluation_data_that_does_not_fit_is_refused(tensors: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "data")
    with pytest.raises(BadCheckpointError, match=f"evaluation data: .*{said}"):
        gate.evaluation(architectures.Recognised("cnn", CLASSES, {}), tmp_path / "data", 8, 0)


def test_rows_are_cut_so_that_the_answers_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_LOGIT_BYTES", 4 * CLASSES * 3)
    assert gate.evaluation(architectures.Recognised("cnn", CLASSES, {}), None, 100, 0).rows == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_name_and_leaves_no_artifact(
    value: float, tmp_path: Path
) -> None:
    state = trained("cnn").state_dict()
    state["conv4.3.weight"].view(-1)[5] = value
    with pytest.raises(NonFiniteWeightsError, match=r"1 of the 32768 weights of 'conv4\.3\.weight'"):
        jobs.run(job(tmp_path, state), silent)
    assert list((tmp_path / "out").glob("*.safetensors")) == []


def test_a_model_that_answers_nothing_finite_by_itself_is_refused_before_any_method_is_blamed(tmp_path: Path) -> None:
    state = trained("cnn").state_dict()
    state[next(name for name in state if name.endswith("running_var"))].fill_(-5.0)
    with pytest.raises(NonFiniteWeightsError, match=r"answers all \d+ rows with NaN") as caught:
        jobs.run(job(tmp_path, state), silent)
    assert "running variance" in (caught.value.hint or "")


def test_a_weight_too_large_for_fp16_is_refused(tmp_path: Path) -> None:
    state = trained("cnn").state_dict()
    state["conv4.3.weight"].view(-1)[5] = 1e6
    with pytest.raises(NonFiniteWeightsError, match="65504"):
        jobs.run(job(tmp_path, state, method="fp16"), silent)


def test_an_unknown_method_or_blocksize_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMethodError, match="nf5") as refusal:
        built(tmp_path, trained("cnn"), method="nf5")
    assert "nf4-dq" in str(refusal.value.hint)
    with pytest.raises(UnsupportedMethodError, match="65"):
        built(tmp_path, trained("cnn"), blocksize=65)


def test_a_hint_in_the_file_that_contradicts_the_tensors_is_an_error(tmp_path: Path) -> None:
    content = {"model_state_dict": trained("cnn").state_dict(), "model_type": "basic_rnn"}
    with pytest.raises(architectures.ContradictingTypeError) as refusal:
        jobs.run(job(tmp_path, content, model_type="cnn"), silent)
    assert failures.translate(refusal.value).code == ModelTypeError.code


def test_a_name_in_the_file_that_nobody_knows_is_no_contradiction(tmp_path: Path) -> None:
    content = {"model_state_dict": trained("cnn").state_dict(), "model_type": "my-third-attempt"}
    assert jobs.run(job(tmp_path, content), silent)["model_type"] == "cnn"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), InsufficientMemoryError),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
            InsufficientMemoryError,
        ),
        (RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp"), InsufficientMemoryError),
        (RuntimeError("NvMapMemAllocInternalTagged: error 12"), InsufficientMemoryError),
        (OSError(28, "No space left on device"), InsufficientDiskError),
        (architectures.UnrecognisedCheckpointError("no known type"), ModelTypeError),
    ],
)
def test_what_libraries_raise_becomes_the_right_code(error: Exception, kind: type[Exception]) -> None:
    assert type(failures.translate(error)) is kind


def test_anything_else_is_internal_with_its_type() -> None:
    translated = failures.translate(KeyError("x"))
    assert (translated.code, translated.detail) == ("internal", "KeyError: 'x'")


def test_inspect_names_type_classes_and_tensors_without_reading_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(trained("cnn").state_dict(), tmp_path / "source")
    opened = checkpoint.open_checkpoint(tmp_path / "source")
    unread = {name: replace(entry, read=pytest.fail) for name, entry in opened.entries.items()}
    monkeypatch.setattr(jobs, "open_checkpoint", lambda _path: replace(opened, entries=unread))
    result = jobs.run({"job": "inspect", "checkpoint": str(tmp_path / "source")}, silent)
    assert (result["model_type"], result["num_classes"]) == ("cnn", CLASSES)
    assert {"name": "classifier.4.weight", "shape": [CLASSES, 1024], "dtype": "float32"} in result["tensors"]
    assert result["bytes"] == (tmp_path / "source").stat().st_size


def test_the_probe_tries_every_method_and_names_the_kernel() -> None:
    result = jobs.run({"job": "probe", "methods": list(METHODS)}, silent)
    assert {name: entry["ok"] for name, entry in result["methods"].items()} == dict.fromkeys(METHODS, True)
    assert result["methods"]["fp32"]["kernel"] == "torch"


def test_a_broken_bitsandbytes_leaves_every_method_usable_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any) -> None:
        raise RuntimeError("Error named symbol not found at line 233 in file ops.cu")

    monkeypatch.setattr(kernels, "_choices", {})
    monkeypatch.setattr(kernels, "_pack_bitsandbytes", broken)
    probed = jobs.run({"job": "probe", "methods": ["nf4", "fp4-dq"]}, silent)["methods"]
    for entry in probed.values():
        assert (entry["ok"], entry["kernel"]) == (True, "torch")
        assert "named symbol not found" in entry["detail"]


def test_a_bitsandbytes_that_answers_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(codes: torch.Tensor, *_args: Any) -> torch.Tensor:
        return torch.zeros(2 * codes.numel())

    monkeypatch.setattr(kernels, "_choices", {})
    monkeypatch.setattr(kernels, "_unpack_bitsandbytes", wrong)
    assert kernels.kernel(torch.device("cpu"), "nf4").name == "torch"


def damaged(change: Callable[[Path], None], folder: Path) -> Path:
    path = Path(built(folder, trained("cnn"))["artifact"])
    change(path)
    return path


def change_sidecar(**fields: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        beside = path.with_suffix(".json")
        beside.write_text(json.dumps({**json.loads(beside.read_text()), **fields}))

    return change


def drop_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors["classifier.4.weight.scales"]
    save_file(tensors, path)


def other_codebook(path: Path) -> None:
    tensors = load_file(path)
    tensors["nibbled.codebook.nf4"] += 0.01
    save_file(tensors, path)
    change_sidecar(artifact_sha256=sidecar.sha256(path))(path)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.with_suffix(".json").unlink(), "cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{"), "not JSON"),
        (change_sidecar(schema=99), "schema 99"),
        (change_sidecar(method="nf5"), "nf5"),
        (change_sidecar(num_classes=CLASSES + 1), "of another shape"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated"),
        (lambda path: path.unlink(), "no artifact"),
        (drop_tensor, "1 missing"),
        (other_codebook, "differs from the format's"),
        (flip_bit, "is damaged"),
    ],
)
def test_a_damaged_artifact_is_refused_with_the_reason(
    change: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=said):
        agent.load(damaged(change, tmp_path), "cpu")


def test_buffers_that_no_state_dict_holds_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithTable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(3), persistent=False)

    monkeypatch.setattr(architectures, "build", lambda *_args, **_options: WithTable())
    model = modules.build_empty("custom", 3, {})
    assert model.get_buffer("table").is_meta
    modules.compute_missing(model, "custom", 3, {})
    assert model.get_buffer("table").tolist() == [0, 1, 2]


def test_the_writer_makes_a_file_that_the_library_reads_with_aligned_tensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.tensor(1.5),
        "c": torch.empty(0),
        "d": torch.arange(2),
    }
    path = tmp_path / "file"
    with TensorFileWriter(path, {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}, {"k": "v"}) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)
    assert {name: value.tolist() for name, value in load_file(path).items()} == {
        name: value.tolist() for name, value in tensors.items()
    }
    header = read_header(path)
    assert all((header.data_start + info.start) % info.dtype.itemsize == 0 for info in header.tensors.values())
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] + 8 == header.data_start


def test_a_file_with_a_tensor_missing_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with (
        pytest.raises(ValueError, match="1 tensors were not written"),
        TensorFileWriter(path, {"a": ((1,), torch.float32)}, {}),
    ):
        pass
    assert not path.exists()


def test_a_tensor_of_another_shape_than_announced_is_not_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="announced"),
        TensorFileWriter(tmp_path / "file", {"a": ((1,), torch.float32)}, {}) as file,
    ):
        file.write("a", torch.ones(2))


def test_a_loaded_model_holds_packed_weights_only_where_the_file_does(tmp_path: Path) -> None:
    result = built(tmp_path, trained("cnn"))
    model = agent.load(result["artifact"], "cpu")
    packed = {name for name, module in model.named_modules() if isinstance(module, PackedTensor)}
    assert "classifier.4.weight" in packed
    assert packed == {name.removesuffix(".codes") for name in load_file(result["artifact"]) if name.endswith(".codes")}
    assert not model.training
