"""What kind of file a checkpoint is, told by its first bytes, and whether its container is honest.

Names prove nothing: files in a content-addressed store have none. Every check here reads directories and sizes only;
nothing is unpickled and no tensor is touched.

Refused:
* anything but safetensors and torch's zip format: bare pickles, TorchScript, tar, GGUF, HDF5, plain text;
* zips with compressed entries, entries outside the archive's tree, doubled names, or more bytes than the file has.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Literal

from agent.quantization.errors import BadCheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from pathlib import Path

Format = Literal["torch-zip", "safetensors"]

MAX_ENTRIES = 50_000
"""Entries of an archive: one per tensor and a few more."""
MAX_PICKLE_BYTES = 64 << 20
"""Size of ``data.pkl``, which describes the tensors in about 150 bytes each."""

_ZIP_MAGIC = b"PK\x03\x04"
_KNOWN_OTHERS = (
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"\xfd7zXZ", "xz-compressed"),
    (b"BZh", "bzip2-compressed"),
)
_UNPACK = "unpack it; a Hugging Face directory goes into one file with tar -chf model.tar -C DIRECTORY ."
_SAVE_AGAIN = "load it where you trust it and save the state dict with torch.save or safetensors"


def detect(path: Path) -> Format:
    """Return the format of a checkpoint.

    Raises:
        UnsafeCheckpointError: it is a bare pickle, which can run code when opened.
        BadCheckpointError: it is something else.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(_ZIP_MAGIC):
        return "torch-zip"
    is_pickle = head.startswith(b"\x80")
    # A safetensors header may also be so long that its length field begins with a pickle's first byte.
    if head[8:9] == b"{" and (not is_pickle or int.from_bytes(head[:8], "little") <= size):
        return "safetensors"
    if is_pickle:
        raise UnsafeCheckpointError("a bare pickle (torch's format before 1.6), which can run code", _SAVE_AGAIN)
    known = next((what for magic, what in _KNOWN_OTHERS if head.startswith(magic)), None)
    begins = f"begins with {head[:8].hex(' ')}" if head else "is empty"
    hint = _UNPACK if known and known.endswith("compressed") else _SAVE_AGAIN
    raise BadCheckpointError(
        f"{known or 'neither safetensors nor a torch.save archive'}: the file of {size} bytes {begins}", hint
    )


def check_archive(path: Path) -> None:
    """Check the directory of a zip before anything opens it as a checkpoint.

    Raises:
        UnsafeCheckpointError: it was made to deceive, or is TorchScript, which is code.
        BadCheckpointError: it is truncated, or no checkpoint.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise BadCheckpointError(f"the archive of {size} bytes is damaged or truncated: {error}") from error
    if len(entries) > MAX_ENTRIES:
        raise UnsafeCheckpointError(f"the archive has {len(entries)} entries, at most {MAX_ENTRIES} are read")
    _check_names([entry.filename for entry in entries])
    _check_sizes(entries, size)


def _check_names(names: list[str]) -> None:
    for name in names:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise UnsafeCheckpointError(f"the archive's entry {name!r} points outside of it")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UnsafeCheckpointError(f"the archive has two entries called {twice!r}")
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise UnsafeCheckpointError("a TorchScript archive: it holds a program, not only weights", _SAVE_AGAIN)
    if not any(name.endswith("/data.pkl") for name in names):
        raise BadCheckpointError(
            f"a zip without data.pkl is no checkpoint; it holds {', '.join(names[:5]) or 'nothing'}"
        )


def _check_sizes(entries: list[zipfile.ZipInfo], size: int) -> None:
    squeezed = [e for e in entries if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size]
    if squeezed:
        worst = max(squeezed, key=lambda entry: entry.file_size)
        raise UnsafeCheckpointError(
            f"the entry {worst.filename!r} unpacks from {worst.compress_size} to {worst.file_size} bytes; "
            "torch.save never compresses"
        )
    pickled = max(entry.file_size for entry in entries if entry.filename.endswith("/data.pkl"))
    if pickled > MAX_PICKLE_BYTES:
        raise UnsafeCheckpointError(f"data.pkl has {pickled} bytes, at most {MAX_PICKLE_BYTES} are read")
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise UnsafeCheckpointError(f"the archive's entries claim {total} bytes, the file has {size}")
