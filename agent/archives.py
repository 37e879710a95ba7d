"""Files inside a directory, an uncompressed tar, or a zip with stored members: where each lies, and nothing unpacked.

Rules:
* Members are told by their place in a file, so that they can be mapped where they are.
* An archive's own words are checked against the file's length before anything is read by them; a header that would
  make a reader allocate more than ``MAX_HEADER_READ`` is refused.
* One folder around everything, as ``tar -cf model.tar model`` makes it, is taken off.

Pure standard library: the supervisor weighs archives by it, the builder reads them by it.
"""

from __future__ import annotations

import errno
import io
import struct
import tarfile
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MAX_MEMBERS = 10_000
MAX_HEADER_READ = 1 << 20
"""Bytes that one header of a tar may take; tarfile reads extended headers whole."""

_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a member: its magic, and at byte 26 the lengths of name and extra field (APPNOTE.TXT, 4.3.7)."""
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_PACK = "tar -chf model.tar -C DIRECTORY ."


class ArchiveError(ValueError):
    """An archive that cannot be read; ``is_unsafe`` if it was made to deceive, ``hint`` says what helps."""

    def __init__(self, detail: str, hint: str | None = None, *, is_unsafe: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.is_unsafe = is_unsafe


@dataclass(frozen=True)
class Member:
    """One file: ``size`` bytes of ``path`` from ``start`` on."""

    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        """Return its bytes; callers look at ``size`` first."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def is_archive(path: Path) -> bool:
    """Return whether ``path`` is a tar, or a zip that is no ``torch.save`` file: one without ``data.pkl``."""
    with path.open("rb") as file:
        head = file.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))
    if head.startswith(_ZIP_MAGIC):
        try:
            names = [entry.filename for entry in _zip_entries(path)]
        except ArchiveError:
            return False
        return any(_leaf(name) == "config.json" for name in names) and "data.pkl" not in map(_leaf, names)
    return head[_TAR_MAGIC_AT:] == _TAR_MAGIC


def members(path: Path) -> dict[str, Member]:
    """Return the files of a directory or an archive by their names, ``/`` between folders.

    Raises:
        ArchiveError: it is damaged, compressed, or deceives.
        OSError: it cannot be read.
    """
    if path.is_dir():
        return _of_directory(path)
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    return _without_top_folder(_of_zip(path) if is_zip else _of_tar(path))


def _of_directory(path: Path) -> dict[str, Member]:
    files = (item for pattern in ("*", "*/*") for item in path.glob(pattern) if item.is_file())
    return {item.relative_to(path).as_posix(): Member(item, 0, item.stat().st_size) for item in files}


class _Bounded(io.FileIO):
    """A file of which no header can make a reader take more than ``MAX_HEADER_READ`` bytes at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_READ:
            raise ArchiveError(f"a header of {size} bytes, at most {MAX_HEADER_READ} are read", is_unsafe=True)
        return super().read(size) or b""


def _of_tar(path: Path) -> dict[str, Member]:
    length = path.stat().st_size
    found: dict[str, Member] = {}
    try:
        with _Bounded(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for count, entry in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise ArchiveError(f"over {MAX_MEMBERS} members", is_unsafe=True)
                if entry.isdir():
                    continue
                if not entry.isreg() or entry.issparse():
                    raise ArchiveError(f"{entry.name[:80]!r} is a link or no plain file", f"pack again: {_PACK}")
                _add(found, entry.name, Member(path, entry.offset_data, entry.size), length)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"a damaged tar: {error}", f"download it again, or pack again: {_PACK}") from error
    return found


def _of_zip(path: Path) -> dict[str, Member]:
    length = path.stat().st_size
    found: dict[str, Member] = {}
    entries = _zip_entries(path)
    if len(entries) > MAX_MEMBERS:
        raise ArchiveError(f"{len(entries)} members, at most {MAX_MEMBERS} are read", is_unsafe=True)
    with path.open("rb") as file:
        for entry in entries:
            if entry.filename.endswith("/"):  # is_dir() of older Pythons fails for a name of no letters
                continue
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise ArchiveError(
                    f"{entry.filename[:80]!r} is compressed; weights are read where they lie", f"pack with: {_PACK}"
                )
            if entry.header_offset < 0:
                raise ArchiveError(f"a member at byte {entry.header_offset} of the zip", is_unsafe=True)
            file.seek(entry.header_offset)
            head = file.read(_ZIP_LOCAL_HEADER.size)
            if len(head) < _ZIP_LOCAL_HEADER.size or not head.startswith(_ZIP_MAGIC):
                raise ArchiveError(f"no member at byte {entry.header_offset} of the zip", is_unsafe=True)
            _magic, name_bytes, extra_bytes = _ZIP_LOCAL_HEADER.unpack(head)
            start = entry.header_offset + _ZIP_LOCAL_HEADER.size + name_bytes + extra_bytes
            _add(found, entry.filename, Member(path, start, entry.file_size), length)
    return found


def _zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # the file cannot be read; a directory that leads to before its beginning is damage
        raise ArchiveError(f"a damaged zip: {error}", "download it again") from error


def _add(found: dict[str, Member], name: str, member: Member, length: int) -> None:
    parts = [part for part in name.split("/") if part != "."]
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise ArchiveError(f"the member {name[:80]!r} points outside of the archive", is_unsafe=True)
    clean = "/".join(parts)
    if clean in found:
        raise ArchiveError(f"two members are called {clean[:80]!r}", is_unsafe=True)
    if member.size < 0 or member.start + member.size > length:
        raise ArchiveError(f"{clean[:80]!r} claims bytes to {member.start + member.size}, the file has {length}")
    found[clean] = member


def _without_top_folder(found: Mapping[str, Member]) -> dict[str, Member]:
    tops = {name.partition("/")[0] for name in _real(found)}
    if len(tops) != 1 or any("/" not in name for name in _real(found)):
        return dict(found)
    return {name.partition("/")[2]: found[name] for name in _real(found)}


def _real(names: Iterable[str]) -> list[str]:
    """Return the names that are not notes of a Mac's tar about its own files."""
    return [name for name in names if not _leaf(name).startswith("._")]


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]
