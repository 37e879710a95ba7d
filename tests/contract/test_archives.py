"""Archives as people make them, and as people make them to deceive: read where they lie, or refused with a reason."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import archives
from agent.archives import ArchiveError, is_archive, members

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "1_Pooling/config.json": b"[]"}


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    return info, content


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)  # its date is fixed, not now: damage at a byte is the same damage tomorrow
            info.compress_type = method
            archive.writestr(info, content)
    return buffer.getvalue()


def contents(path: Path) -> dict[str, bytes]:
    return {name: member.read() for name, member in members(path).items()}


@pytest.mark.parametrize("prefix", ["", "./", "model/"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_has_its_files_without_the_folder_around_them(tmp_path: Path, prefix: str, form: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(tar(*(entry(prefix + name, content) for name, content in FILES.items()), form=form))
    assert is_archive(path)
    assert contents(path) == FILES


def test_names_of_any_length_are_read(tmp_path: Path) -> None:
    long = "a" * 150 + ".safetensors"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (tmp_path / "x").write_bytes(tar(entry("config.json", b"{}"), entry(long, b"w"), form=form))
        assert contents(tmp_path / "x")[long] == b"w"


@pytest.mark.parametrize("prefix", ["", "model/"])
def test_a_zip_has_its_files_without_the_folder_around_them(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "x").write_bytes(zipped({prefix + name: content for name, content in FILES.items()}))
    assert is_archive(tmp_path / "x")
    assert contents(tmp_path / "x") == FILES


def test_a_directory_has_the_same_files(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert contents(tmp_path) == FILES


def test_what_torch_saves_is_no_archive_of_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(zipped({"archive/data.pkl": b"", "archive/config.json": b""}))
    assert not is_archive(tmp_path / "x")


def test_a_folder_that_a_mac_adds_notes_to_is_still_the_only_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(tar(entry("._model", b"?"), entry("model/config.json", b"{}")))
    assert contents(tmp_path / "x") == {"config.json": b"{}"}


@pytest.mark.parametrize(
    ("content", "is_unsafe", "said"),
    [
        (tar(entry("../x", b"1")), True, "points outside"),
        (tar(entry("/etc/x", b"1")), True, "points outside"),
        (tar(entry("a", b"1"), entry("./a", b"2")), True, "two members are called 'a'"),
        (tar(entry("a", kind=tarfile.SYMTYPE)), False, "'a' is a link or no plain file"),
        (tar(entry("a", kind=tarfile.CHRTYPE)), False, "'a' is a link or no plain file"),
        (tar(entry("a", b"x" * 5000))[:2000], False, "claims bytes to 5512, the file has 2000"),
        (zipped({"config.json": b"{}" * 99}, zipfile.ZIP_DEFLATED), False, "'config.json' is compressed"),
        (zipped({"config.json": b"", "a/../../b": b""}), True, "points outside"),
        (zipped({"config.json": b"{}"}).replace(b"PK\x03\x04", b"PK\x03\x05", 1), False, "damaged tar"),
    ],
    ids=["above", "absolute", "twice", "link", "device", "cut off", "compressed", "zip above", "no zip"],
)
def test_what_cannot_be_read_where_it_lies_is_refused(
    tmp_path: Path, content: bytes, said: str, *, is_unsafe: bool
) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ArchiveError, match=said) as caught:
        members(tmp_path / "x")
    assert caught.value.is_unsafe == is_unsafe


def test_a_zip_that_points_at_no_member_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped({"config.json": b"{}", "b": b"."}))
    content[content.index(b"PK\x03\x04", 4)] = 0
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ArchiveError, match="no member at byte"):
        members(tmp_path / "x")


def test_an_extended_header_of_many_bytes_is_never_read(tmp_path: Path) -> None:
    header, _ = entry("pax", b"", tarfile.XHDTYPE)
    header.size = 64 << 20
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(65 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="at most 1048576 are read") as caught:
            members(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.is_unsafe
    assert peak < 4 << 20


def test_archives_of_very_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    for content in (tar(entry("a"), entry("b"), entry("c")), zipped({"config.json": b"", "b": b"", "c": b""})):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ArchiveError, match=r"over 2 members|at most 2"):
            members(tmp_path / "x")


def damaged(base: bytes, at: int, byte: int, path: Path) -> Path:
    content = bytearray(base)
    content[at % len(content)] = byte
    path.write_bytes(content)
    return path


def test_no_single_damaged_byte_of_a_zip_s_directory_lets_another_error_through(tmp_path: Path) -> None:
    base = zipped(FILES)
    directory = base.index(b"PK\1\2")
    for at in range(directory, len(base)):
        for byte in (0, 1, 127, 255):
            path = damaged(base, at, byte, tmp_path / "x")
            try:
                found = members(path) if is_archive(path) else {}
            except ArchiveError:
                continue
            assert all(0 <= file.start <= file.start + file.size <= len(base) for file in found.values())


@settings(max_examples=150, deadline=None)
@given(
    at=st.integers(0, 3000), byte=st.integers(0, 255), base=st.sampled_from([tar(*map(entry, FILES)), zipped(FILES)])
)
def test_a_damaged_byte_gives_files_inside_the_archive_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, base: bytes
) -> None:
    path = damaged(base, at, byte, tmp_path_factory.getbasetemp() / "damaged")
    try:
        found = members(path) if is_archive(path) else {}
    except ArchiveError:
        return
    assert all(0 <= file.start <= file.start + file.size <= len(base) for file in found.values())
