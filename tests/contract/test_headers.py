"""Containers that lie: each is refused with the right code, and none is read further than its directory."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.adapters import headers
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from tests.fakes.device import checkpoint

if TYPE_CHECKING:
    from pathlib import Path

UNSAFE, BAD = ErrorCode.UNSAFE_CHECKPOINT, ErrorCode.BAD_CHECKPOINT


def archive(members: dict[str, bytes], *, deflated: bool = False, pickle: str | None = "archive/data.pkl") -> bytes:
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as file:
        if pickle:
            file.writestr(pickle, b"\x80\x02N.")
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"", *, announced: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if announced is None else announced) + raw + data


def tensor(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refuse(path: Path, content: bytes) -> StepError:
    path.write_bytes(content)
    with pytest.raises(StepError) as caught:
        headers.numels(path)
    return caught.value


def test_a_torch_archive_tells_its_storages_as_float32(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(checkpoint(5000, 7))
    assert headers.numels(tmp_path / "x.pt") == (5000, 7)


def test_a_safetensors_file_tells_its_shapes(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "w": tensor([2, 3], 0, 24), "b": tensor([4], 24, 32, "F16")}
    (tmp_path / "x").write_bytes(safetensors(header, bytes(32)))
    assert headers.numels(tmp_path / "x") == (6, 4)


ZIPS = {
    "a deflated member": (archive({"archive/data/0": bytes(10_000_000)}, deflated=True), UNSAFE, "compressed"),
    "a name with ..": (archive({"archive/../../etc/passwd": b"x"}), UNSAFE, "leaves the archive"),
    "an absolute name": (archive({"/etc/passwd": b"x"}), UNSAFE, "leaves the archive"),
    "TorchScript code": (archive({"archive/code/__torch__.py": b"x"}), UNSAFE, "TorchScript"),
    "TorchScript constants": (archive({"archive/constants.pkl": b"x"}), UNSAFE, "TorchScript"),
    "no pickle": (archive({"archive/data/0": b"x"}, pickle=None), BAD, "without data.pkl"),
    "a cut archive": (checkpoint(5000)[:-30], BAD, "damaged zip"),
    "half an archive": (checkpoint(5000)[:9000], BAD, "damaged zip"),
    "a page of HTML": (b"<!doctype html>", BAD, "3c 21 64"),
    "nothing": (b"", BAD, "nothing"),
    "a legacy pickle": (b"\x80\x02\x8a\nl\xfc\x9cF", BAD, "80 02 8a 0a"),
}
SAFETENSORS = {
    "a header longer than the file": (safetensors({}, announced=10**6), UNSAFE, "header of 1000000 bytes"),
    "a header of 2**63 bytes": (safetensors({}, announced=2**63), UNSAFE, f"{2**63} bytes"),
    "a header above the limit": (safetensors(b"{" + b" " * headers.MAX_HEADER_BYTES + b"}"), UNSAFE, "at most"),
    "no JSON": (safetensors(b"{nonsense"), BAD, "not JSON"),
    "deep JSON": (safetensors(b'{"a":' * 100_000), BAD, "not JSON"),
    "a name twice": (safetensors(b'{"w":1,"w":2}'), UNSAFE, "occurs twice"),
    "offsets behind the end": (safetensors({"w": tensor([6], 0, 24)}, bytes(23)), UNSAFE, "0-24 of 23"),
    "offsets in reverse": (safetensors({"w": tensor([0], 8, 4)}, bytes(8)), UNSAFE, "8-4"),
    "a negative offset": (safetensors({"w": tensor([1], -4, 0)}, bytes(8)), UNSAFE, "-4"),
    "a shape that is more than its bytes": (safetensors({"w": tensor([10**9], 0, 8)}, bytes(8)), UNSAFE, "1000000000"),
    "a shape of negative sizes": (safetensors({"w": tensor([-2, -1], 0, 8)}, bytes(8)), UNSAFE, "dimensions"),
    "a shape of a million sizes": (safetensors({"w": tensor([1] * 10**6, 0, 4)}, bytes(4)), UNSAFE, "1000000"),
    "an infinite size": (safetensors(b'{"w":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}'), BAD, "unusable"),
    "a size of 5000 digits": (safetensors(b'{"w":' + b"1" * 5000 + b"}"), BAD, "not JSON"),
    "an unknown dtype": (safetensors({"w": tensor([2], 0, 8, "F4")}, bytes(8)), BAD, "F4"),
    "a dtype that is a list": (safetensors({"w": tensor([2], 0, 8, ["F32"])}, bytes(8)), BAD, "unusable"),
    "an entry that is no object": (safetensors({"w": 7}), BAD, "unusable"),
    "tensors on the same bytes": (
        safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 0, 8)}, bytes(8)), UNSAFE, "16 bytes that share 8",
    ),
}  # fmt: skip
HOSTILE = {**ZIPS, **SAFETENSORS}


@pytest.mark.parametrize(("content", "code", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_container_is_refused_with_its_numbers(
    tmp_path: Path, content: bytes, code: ErrorCode, words: str
) -> None:
    error = refuse(tmp_path / "x", content)
    assert error.code is code
    assert words in error.detail
    assert not error.retryable


def test_a_member_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    honest = bytearray(checkpoint(100))
    entry = honest.rfind(b"PK\x01\x02")
    honest[entry + 20 : entry + 28] = struct.pack("<II", 2**30, 2**30)
    error = refuse(tmp_path / "x", bytes(honest))
    assert error.code is UNSAFE
    assert f"members of {2**30 + 6} bytes in a file of {len(honest)}" in error.detail


def test_a_pickle_above_the_limit_is_refused(tmp_path: Path) -> None:
    big = archive({"archive/data.pkl": bytes(headers.MAX_PICKLE_BYTES + 1)}, pickle=None)
    assert "a pickle of" in refuse(tmp_path / "x", big).detail


def test_more_members_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_ENTRIES", 3)
    assert "4 members" in refuse(tmp_path / "x", checkpoint(1, 1, 1)).detail
    many = {str(number): tensor([1], 4 * number, 4 * number + 4) for number in range(4)}
    assert "4 tensors" in refuse(tmp_path / "x", safetensors(many, bytes(16))).detail


@settings(deadline=None, derandomize=True)
@given(st.data())
def test_no_damage_to_a_container_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    header = {"w": tensor([2, 3], 0, 24), "b": tensor([4], 24, 40)}
    whole = data.draw(st.sampled_from([checkpoint(8, 3), safetensors(header, bytes(40))]))
    damaged = bytearray(whole)
    for position, value in data.draw(st.dictionaries(st.integers(0, len(whole) - 1), st.integers(0, 255))).items():
        damaged[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    try:
        found = headers.numels(path)
    except StepError as error:
        assert error.code in (UNSAFE, BAD)  # noqa: PT017 - both ways out are good ones
    else:
        assert 0 <= sum(found) <= path.stat().st_size


def test_a_cut_archive_is_to_be_signed_anew_since_what_was_fetched_matched_its_manifest(tmp_path: Path) -> None:
    assert "save or fetch it again, and sign that" in str(refuse(tmp_path / "cut.pt", checkpoint(5000)[:9000]).hint)
