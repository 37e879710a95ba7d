"""Files that are, and files that only pretend to be, checkpoints."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from agent.quantization import checkpoint, containers, safetensors_header
from agent.quantization.checkpoint import open_checkpoint
from agent.quantization.errors import BadCheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEIGHTS = {"a.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.ones(3)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "blob"


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def rezipped(path: Path, change: Callable[[str, bytes], tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    """Write a valid checkpoint's entries again, changed, so that only one thing is wrong with it."""
    original = io.BytesIO()
    torch.save(WEIGHTS, original)
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(path, "w", method) as target:
        for entry in source.infolist():
            target.writestr(*change(entry.filename, source.read(entry)))
    return path


def raw_safetensors(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


class Payload:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


class Disguised(Tensor):
    """A tensor that could override what reading it does."""


@pytest.mark.parametrize("key", ["model_state_dict", "model_state", "state_dict", "model"])
def test_a_wrapped_state_dict_is_found_under_every_usual_key(path: Path, key: str) -> None:
    found = open_checkpoint(saved(path, {"epoch": 3, key: WEIGHTS, "optimizer_state_dict": {"lr": 0.1}}))
    assert list(found.entries) == list(WEIGHTS)
    assert torch.equal(found.entries["a.weight"].read(), WEIGHTS["a.weight"])


def test_a_bare_state_dict_is_read_as_it_is(path: Path) -> None:
    found = open_checkpoint(saved(path, OrderedDict(WEIGHTS)))
    assert found.shapes == {"a.weight": (3, 4), "a.bias": (3,)}
    assert found.hint is None


def test_the_model_type_in_the_file_is_passed_on_as_a_hint(path: Path) -> None:
    assert open_checkpoint(saved(path, {"model_state_dict": WEIGHTS, "model_type": "basic_rnn"})).hint == "basic_rnn"


def test_nested_wrapper_prefixes_are_stripped_only_while_every_key_has_them(path: Path) -> None:
    everywhere = {f"module._orig_mod.{name}": value for name, value in WEIGHTS.items()}
    assert list(open_checkpoint(saved(path, everywhere)).entries) == list(WEIGHTS)
    once = {"module.a.weight": torch.ones(2), "b": torch.ones(2)}
    assert list(open_checkpoint(saved(path, once)).entries) == list(once)


def test_safetensors_are_told_by_content_and_read(path: Path) -> None:
    save_file(WEIGHTS, path)
    found = open_checkpoint(path)
    assert found.shapes == {"a.weight": (3, 4), "a.bias": (3,)}
    assert torch.equal(found.entries["a.weight"].read(), WEIGHTS["a.weight"])


def test_a_safetensors_header_whose_length_begins_like_a_pickle_is_still_safetensors(path: Path) -> None:
    header = json.dumps({"a": entry(0, 4, [1])}).encode().ljust(0x180)
    assert struct.pack("<Q", len(header))[:1] == b"\x80"
    assert open_checkpoint(raw_safetensors(path, header, bytes(4))).shapes == {"a": (1,)}


def test_dynamic_int8_modules_come_back_under_their_float_names(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its own removal
        torch.backends.quantized.engine = (
            "fbgemm" if "fbgemm" in torch.backends.quantized.supported_engines else "qnnpack"
        )
        linear = nn.Linear(8, 4)
        expected = linear.weight.detach().clone()
        quantize: Any = torch.ao.quantization.quantize_dynamic
        small = quantize(nn.Sequential(linear), {nn.Linear}, dtype=torch.qint8)
        saved(path, small.state_dict())
    found = open_checkpoint(path)
    assert found.shapes == {"0.weight": (4, 8), "0.bias": (4,)}
    weight = found.entries["0.weight"].read()
    assert weight.dtype == torch.float32
    assert (weight - expected).abs().max() <= expected.abs().max() / 100
    assert "INT8" in found.notes[0]


def test_the_eight_bit_export_of_the_guides_project_is_undone(path: Path) -> None:
    codes = torch.tensor([[0, 255], [7, 1]], dtype=torch.uint8)
    scale, zero = torch.tensor([0.5]), torch.tensor([-3.0])
    save_file({"a.weight": codes, "a.weight_scale": scale, "a.weight_zero": zero, "b": torch.ones(2)}, path)
    found = open_checkpoint(path)
    assert found.shapes == {"a.weight": (2, 2), "b": (2,)}
    assert found.entries["a.weight"].read().tolist() == [[-3.0, 124.5], [0.5, -2.5]]
    assert "1 weights were" in found.notes[0]


def test_the_four_bit_export_of_the_guides_project_is_undone_high_half_first(path: Path) -> None:
    codes = torch.tensor([[0xF0], [0x3C]], dtype=torch.uint8)
    save_file({"w": codes, "w_scale_4bit": torch.tensor([3.0]), "w_min_4bit": torch.tensor([-1.0])}, path)
    found = open_checkpoint(path)
    assert found.shapes == {"w": (2, 2)}
    torch.testing.assert_close(found.entries["w"].read(), torch.tensor([[2.0, -1.0], [-0.4, 1.4]]))


def test_static_int8_weights_are_read_as_floats_without_their_scales(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of quantized tensors
        weight = torch.quantize_per_tensor(torch.tensor([[1.0, -2.0]]), 0.5, 0, torch.qint8)
        saved(path, {"conv.weight": weight, "conv.scale": torch.tensor(0.1), "conv.zero_point": torch.tensor(3)})
    found = open_checkpoint(path)
    assert found.shapes == {"conv.weight": (1, 2)}
    assert found.entries["conv.weight"].read().tolist() == [[1.0, -2.0]]


def test_a_bare_pickle_is_refused_without_being_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UnsafeCheckpointError, match="bare pickle"):
        open_checkpoint(path)
    assert not (path.parent / "pwned").exists()


def test_torchs_old_format_is_refused_with_the_way_out(path: Path) -> None:
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeCheckpointError, match=r"before 1\.6") as refusal:
        open_checkpoint(path)
    assert "torch.save" in str(refusal.value.hint)


def test_a_zip_whose_pickle_runs_code_is_refused_naming_the_function(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    saved(path, {"model_state_dict": WEIGHTS, "extra": Payload()})
    with pytest.raises(UnsafeCheckpointError, match="system"):
        open_checkpoint(path)
    assert not (path.parent / "pwned").exists()


def test_a_checkpoint_with_whole_modules_is_refused_with_the_dates_of_the_script_that_wrote_it(path: Path) -> None:
    saved(path, {"model_state_dict": WEIGHTS, "model_config": {"lstm": nn.LSTM(2, 2)}})
    with pytest.raises(UnsafeCheckpointError, match=r"torch\.nn\.modules\.rnn\.LSTM") as refusal:
        open_checkpoint(path)
    assert "2025-11-20" in str(refusal.value.hint)


def test_torchscript_is_refused_as_a_program(path: Path) -> None:
    def add_code(name: str, data: bytes) -> tuple[str, bytes]:
        return (name.replace("byteorder", "code/__torch__.py"), data)

    with pytest.raises(UnsafeCheckpointError, match="TorchScript"):
        open_checkpoint(rezipped(path, add_code))


def test_a_compressed_archive_is_refused_with_both_sizes(path: Path) -> None:
    def inflate(name: str, data: bytes) -> tuple[str, bytes]:
        return name, bytes(10_000_000) if name.endswith("data/0") else data

    with pytest.raises(UnsafeCheckpointError, match="to 10000000 bytes"):
        open_checkpoint(rezipped(path, inflate, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("name", ["/etc/passwd", "archive/../../x", "archive\\x"])
def test_an_entry_outside_the_archive_is_refused(path: Path, name: str) -> None:
    def escape(old: str, data: bytes) -> tuple[str, bytes]:
        return (name if old.endswith("byteorder") else old), data

    with pytest.raises(UnsafeCheckpointError, match="outside"):
        open_checkpoint(rezipped(path, escape))


def test_two_entries_of_one_name_are_refused(path: Path) -> None:
    def double(old: str, data: bytes) -> tuple[str, bytes]:
        return old.replace("byteorder", "version"), data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of what the test is about
        rezipped(path, double)
    with pytest.raises(UnsafeCheckpointError, match="two entries"):
        open_checkpoint(path)


def test_overlapping_entries_that_claim_more_than_the_file_are_refused(path: Path) -> None:
    rezipped(path, lambda name, data: (name, data))
    content = bytearray(path.read_bytes())
    # The sizes of the largest entry in the central directory, both of them, raised beyond the file.
    record = content.rfind(b"PK\x01\x02", 0, content.rfind(b"PK\x01\x02"))
    struct.pack_into("<II", content, record + 20, 1 << 20, 1 << 20)
    path.write_bytes(content)
    with pytest.raises(UnsafeCheckpointError, match="claim"):
        open_checkpoint(path)


def test_too_many_entries_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_ENTRIES", 3)
    with pytest.raises(UnsafeCheckpointError, match="at most 3"):
        open_checkpoint(saved(path, WEIGHTS))


def test_a_huge_pickle_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(UnsafeCheckpointError, match="at most 10 are read"):
        open_checkpoint(saved(path, WEIGHTS))


def test_a_truncated_archive_is_refused_with_its_size(path: Path) -> None:
    saved(path, WEIGHTS)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(BadCheckpointError, match="500 bytes"):
        open_checkpoint(path)


def test_a_pickle_of_garbage_is_refused(path: Path) -> None:
    rezipped(path, lambda name, data: (name, b"garbage" if name.endswith("data.pkl") else data))
    with pytest.raises(BadCheckpointError, match="its pickle cannot be read"):
        open_checkpoint(path)


def test_an_archive_that_lacks_a_tensors_data_is_refused(path: Path) -> None:
    rezipped(path, lambda name, data: (name.replace("data/0", "data/9"), data))
    with pytest.raises(BadCheckpointError, match="torch cannot open it"):
        open_checkpoint(path)


def test_a_zip_without_weights_is_refused_listing_what_it_holds(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(BadCheckpointError, match=r"readme\.txt"):
        open_checkpoint(path)


def test_an_expanded_tensor_that_claims_more_than_its_storage_is_refused(path: Path) -> None:
    saved(path, {"bomb": torch.zeros(1).expand(1 << 40)})
    with pytest.raises(UnsafeCheckpointError, match=r"claims 4398046511104 bytes, its storage has 4"):
        open_checkpoint(path)


def test_a_sparse_tensor_is_refused(path: Path) -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([1.0]), (1 << 20,), check_invariants=True)
    with pytest.raises(BadCheckpointError, match="sparse"):
        open_checkpoint(saved(path, {"w": sparse}))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_an_unreadable_dtype_is_refused_with_the_readable_ones(path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(BadCheckpointError, match="readable are F64, F32"):
        open_checkpoint(saved(path, {"w": torch.zeros(2).to(dtype)}))


def test_too_many_tensors_in_a_pickle_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_TENSORS", 1)
    with pytest.raises(UnsafeCheckpointError, match="2 tensors, at most 1"):
        open_checkpoint(saved(path, WEIGHTS))


def test_a_tensor_of_another_class_is_refused() -> None:
    with pytest.raises(BadCheckpointError, match="'w' is a Disguised"):
        checkpoint._entry("w", torch.ones(1).as_subclass(Disguised))


def test_too_many_axes_are_refused(path: Path) -> None:
    with pytest.raises(BadCheckpointError, match="9 axes"):
        open_checkpoint(saved(path, {"w": torch.zeros((1,) * 9)}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 1, "weights": [1.0]}, "'epoch', 'weights'"),
        ([1, 2], "a list"),
        (torch.ones(3), "a Tensor"),
        ({}, "none"),
        ({"model_state_dict": {}}, "'model_state_dict'"),
    ],
)
def test_a_pickle_that_is_no_state_dict_is_refused_with_what_it_is(path: Path, content: Any, said: str) -> None:
    with pytest.raises(BadCheckpointError, match=said):
        open_checkpoint(saved(path, content))


def test_an_old_torch_is_not_trusted_with_pickles() -> None:
    with pytest.raises(UnsafeCheckpointError, match=r"2\.10 is needed"):
        checkpoint._require_torch("2.9.1+cu126")
    checkpoint._require_torch("2.10.0")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"GGUF" + bytes(40), "GGUF"), (b"hello, this is no model", "68 65 6c 6c 6f")],
)
def test_other_files_are_named_for_what_they_are(path: Path, content: bytes, said: str) -> None:
    path.write_bytes(content)
    with pytest.raises(BadCheckpointError, match=said):
        open_checkpoint(path)


def test_a_missing_file_is_an_error_and_no_crash(path: Path) -> None:
    with pytest.raises(BadCheckpointError, match="No such file"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("tensors", "data", "said"),
    [
        ({"a": entry(0, 8, [1])}, 8, "needs 4 bytes, has 8"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12, "begins at byte 8 of the data, expected 4"),
        ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, 4, "expected 4"),
        ({"a": entry(0, 400, [100])}, 4, "need 400 bytes, the file has 4"),
        ({"a": entry(0, 4, [1])}, 8, "need 4 bytes, the file has 8"),
        ({"a": entry(0, -4, [-1])}, 0, r"shape \[-1\]"),
        ({"a": entry(0, 4, [1], "F8_E4M3")}, 4, "F8_E4M3"),
        ({"a": {"dtype": "F32"}}, 0, "lacks"),
        ({"a": entry(0, 4, [1] * 9)}, 4, "shape"),
        ({"__metadata__": {"a": 1}}, 0, "map of strings"),
        ({}, 0, "no tensors"),
    ],
)
def test_a_lying_safetensors_header_is_refused(path: Path, tensors: dict[str, Any], data: int, said: str) -> None:
    raw_safetensors(path, json.dumps(tensors).encode(), bytes(data))
    with pytest.raises(BadCheckpointError, match=said):
        open_checkpoint(path)


def test_a_safetensors_key_that_comes_twice_is_refused(path: Path) -> None:
    one = json.dumps(entry(0, 4, [1]))
    with pytest.raises(UnsafeCheckpointError, match="'a' twice"):
        open_checkpoint(raw_safetensors(path, f'{{"a":{one},"a":{one}}}'.encode(), bytes(4)))


def test_a_giant_safetensors_header_is_refused_before_it_is_read(path: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match="at most 8388608"):
        open_checkpoint(raw_safetensors(path, b"{}", length=1 << 40))


def test_a_file_of_another_format_is_told_by_its_first_bytes(path: Path) -> None:
    torch.save({}, path)
    with pytest.raises(BadCheckpointError, match="no safetensors file: it begins with 50 4b 03 04") as refusal:
        safetensors_header.read_header(path)
    assert refusal.value.hint == "save it with safetensors.torch.save_file"


def test_a_truncated_safetensors_header_is_refused(path: Path) -> None:
    with pytest.raises(BadCheckpointError, match="header claims 1000 bytes, the file has 10"):
        open_checkpoint(raw_safetensors(path, b"{}", length=1000))


def test_too_many_safetensors_entries_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_TENSORS", 1)
    save_file(WEIGHTS, path)
    with pytest.raises(UnsafeCheckpointError, match="at most 1"):
        open_checkpoint(path)


def test_a_header_that_is_no_object_is_refused(path: Path) -> None:
    with pytest.raises(BadCheckpointError, match="not a JSON object"):
        safetensors_header.read_header(raw_safetensors(path, b"[]"))


def test_a_file_shorter_than_a_header_is_refused_with_its_size(path: Path) -> None:
    path.write_bytes(b"1234567")
    with pytest.raises(BadCheckpointError, match="7 bytes"):
        safetensors_header.read_header(path)


def test_deeply_nested_json_in_a_header_is_refused(path: Path) -> None:
    with pytest.raises(BadCheckpointError, match="not JSON"):
        open_checkpoint(raw_safetensors(path, b'{"a":' + b"[" * 200_000))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_float_dtype_is_read(path: Path, dtype: torch.dtype) -> None:
    weight: Tensor = torch.tensor([0.5, -1.25]).to(dtype)
    assert torch.equal(open_checkpoint(saved(path, {"w": weight})).entries["w"].read(), weight)


def test_a_weight_is_not_in_anonymous_memory_until_it_is_read(path: Path) -> None:
    from agent.quantization.process import anonymous_bytes  # noqa: PLC0415 - Linux only

    saved(path, {"w": torch.ones(8 << 20)})
    before = anonymous_bytes()
    found = open_checkpoint(path)
    assert float(found.entries["w"].read().sum()) == 8 << 20
    assert anonymous_bytes() - before < 16 << 20
