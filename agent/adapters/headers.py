"""Reading what a checkpoint's container says of itself, without opening a tensor and without unpickling.

A ``.pt`` file is a zip archive whose members are the storages: their sizes are in its directory. A safetensors file
begins with a JSON header. Everything that a hostile file can lie about here is checked against the file's real
length, so that no later reader is led to allocate more than the file can hold.

The builder opens the file for real and checks again; this is the cheap look that planning needs.
"""

from __future__ import annotations

import json
import math
import zipfile
from typing import TYPE_CHECKING, Any

from agent.archives import ArchiveError, Member, is_archive, members
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from pathlib import Path

MAX_ENTRIES = 20_000
MAX_HEADER_BYTES = 8 * 2**20
MAX_PICKLE_BYTES = 32 * 2**20
MAX_DIMENSIONS = 64
"""NumPy's own limit (``NPY_MAXDIMS``); bounds the work of multiplying a hostile shape."""
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def numels(path: Path) -> tuple[int, ...]:
    """Return the number of weights of each tensor in a ``.pt`` or safetensors file, told apart by content.

    Of a Hugging Face directory or archive they are those of its safetensors files. A ``.pt`` archive names no types in
    its directory: its storages are counted as float32, which is what training writes.

    Raises:
        StepError: ``unsafe_checkpoint`` for a container made to deceive, ``bad_checkpoint`` for anything else.
    """
    if path.is_dir() or is_archive(path):
        return _packed_numels(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PK\x03\x04"):
        return _zip_numels(path)
    if len(head) == 9 and head[8:9] == b"{":  # noqa: PLR2004 - 8 bytes of length, then JSON
        return _safetensors_numels(Member(path, 0, path.stat().st_size))
    raise StepError(
        ErrorCode.BAD_CHECKPOINT,
        f"neither a torch zip archive nor safetensors: it begins with {head[:8].hex(' ') or 'nothing'}",
        "save it with torch.save (its default format) or as safetensors",
    )


def _packed_numels(path: Path) -> tuple[int, ...]:
    try:
        files = members(path)
    except ArchiveError as error:
        code = ErrorCode.UNSAFE_CHECKPOINT if error.is_unsafe else ErrorCode.BAD_CHECKPOINT
        raise StepError(code, error.detail, error.hint) from None
    weights = [file for name, file in files.items() if name.endswith(".safetensors") and "/" not in name]
    if not weights:
        raise StepError(
            ErrorCode.BAD_CHECKPOINT,
            f"no safetensors file among {', '.join(sorted(files)[:8]) or 'no files'}",
            "save the model with model.save_pretrained(directory), which writes safetensors",
        )
    return tuple(numel for file in weights for numel in _safetensors_numels(file))


def _zip_numels(path: Path) -> tuple[int, ...]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        hint = (
            "a file that matches its manifest was damaged before it was signed: save or fetch it again, and sign that"
        )
        raise StepError(ErrorCode.BAD_CHECKPOINT, f"a damaged zip archive: {error}", hint) from None
    _check_entries(entries, path.stat().st_size)
    names = {entry.filename.split("/", 1)[-1] for entry in entries}
    if "data.pkl" not in names:
        raise StepError(
            ErrorCode.BAD_CHECKPOINT,
            f"a zip archive without data.pkl ({len(names)} members)",
            "save it with torch.save",
        )
    if names & {"constants.pkl", "version.txt"} or any(name.startswith("code/") for name in names):
        raise StepError(
            ErrorCode.UNSAFE_CHECKPOINT,
            "a TorchScript archive, which contains code",
            "save the state dict alone: torch.save(model.state_dict(), path)",
        )
    return tuple(entry.file_size // 4 for entry in entries if "/data/" in entry.filename)


def _check_entries(entries: list[zipfile.ZipInfo], length: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise _unsafe(f"{len(entries)} members, at most {MAX_ENTRIES} are accepted")
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise _unsafe(f"{len(packed)} compressed members, {packed[0]} among them; torch.save stores them plain")
    if any(entry.filename.startswith("/") or ".." in entry.filename.split("/") for entry in entries):
        raise _unsafe("a member name that leaves the archive")
    total = sum(entry.file_size for entry in entries)
    if total > length:
        raise _unsafe(f"members of {total} bytes in a file of {length}")
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if any(entry.file_size > MAX_PICKLE_BYTES for entry in pickles):
        raise _unsafe(f"a pickle of {pickles[0].file_size} bytes, at most {MAX_PICKLE_BYTES} are accepted")


def _safetensors_numels(file: Member) -> tuple[int, ...]:
    with file.path.open("rb") as opened:
        opened.seek(file.start)
        length = file.size
        header_bytes = int.from_bytes(opened.read(8), "little")
        if header_bytes > min(MAX_HEADER_BYTES, length - 8):
            raise _unsafe(
                f"a safetensors header of {header_bytes} bytes in a file of {length}; at most {MAX_HEADER_BYTES}"
            )
        raw = opened.read(header_bytes)
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise StepError(ErrorCode.BAD_CHECKPOINT, f"a safetensors header that is not JSON: {error}") from None
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(tensors) > MAX_ENTRIES:
        raise _unsafe(f"{len(tensors)} tensors, at most {MAX_ENTRIES} are accepted")
    data_bytes = length - 8 - header_bytes
    found = {name: _numel(name, entry, data_bytes) for name, entry in tensors.items()}
    total = sum(numel * _ITEM_BYTES[tensors[name]["dtype"]] for name, numel in found.items())
    if total > data_bytes:
        raise _unsafe(f"tensors of {total} bytes that share {data_bytes}")
    return tuple(found.values())


def _numel(name: str, entry: Any, data_bytes: int) -> int:
    try:
        begin, end = (int(offset) for offset in entry["data_offsets"])
        shape = [int(size) for size in entry["shape"]]
        item = _ITEM_BYTES[entry["dtype"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StepError(ErrorCode.BAD_CHECKPOINT, f"tensor {name[:80]!r}: unusable header entry ({error!r})") from None
    if len(shape) > MAX_DIMENSIONS or any(not 0 <= size < 2**63 for size in shape):
        raise _unsafe(f"tensor {name[:80]!r} claims {len(shape)} dimensions that no tensor can have")
    numel = math.prod(shape)
    if not 0 <= begin <= end <= data_bytes or numel * item != end - begin:
        raise _unsafe(f"tensor {name[:80]!r} claims {numel} weights in bytes {begin}-{end} of {data_bytes}")
    return numel


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _unsafe("a safetensors header in which a name occurs twice")
    return found


def _unsafe(detail: str) -> StepError:
    return StepError(ErrorCode.UNSAFE_CHECKPOINT, detail, "do not use this file; ask who made it")
