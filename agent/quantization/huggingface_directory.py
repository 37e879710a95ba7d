"""Reading a Hugging Face directory: ``config.json`` and safetensors beside it, in one file or in shards.

Rules:
* Only safetensors is read; each file passes the checks that a single one does.
* An index names files of its own directory and nothing else, and must agree with what they hold.
* Code in the directory is never looked at.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from agent.architectures import huggingface
from agent.architectures.huggingface_config import resolve, task_of
from agent.architectures.huggingface_network import stored_names
from agent.quantization.checkpoint import Checkpoint, Entry, safetensors_entries
from agent.quantization.errors import BadCheckpointError, UnsafeCheckpointError
from agent.quantization.sidecar import sha256

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
POOLING, MODULES = "1_Pooling/config.json", "modules.json"
"""What sentence-transformers writes beside an encoder: how steps become one vector, and what follows."""

MAX_JSON_BYTES = 16 << 20
"""An index has about 100 bytes a tensor, a configuration with 20,000 labels 1 MiB."""
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


def open_directory(path: Path) -> Checkpoint:
    """Open the checkpoint in a directory; its configuration is in ``told``.

    Raises:
        BadCheckpointError: files are missing, damaged, or disagree.
        UnsafeCheckpointError: an index points outside of the directory.
        ArchitectureError: the model is none that can be served.
    """
    config = _object(path / CONFIG)
    files = _weight_files(path)
    entries: dict[str, Entry] = {}
    for file in files:
        found = safetensors_entries(file)
        twice = sorted(entries.keys() & found.keys())
        if twice:
            raise UnsafeCheckpointError(f"{len(twice)} tensors are in two files, {twice[0]!r} in {file.name} again")
        entries |= found
    _check_index(path, entries)
    resolved = resolve(config)
    names = stored_names(resolved, task_of(resolved), entries)
    return Checkpoint(
        entries={new: entries[old] for new, old in names.items()},
        file_bytes=sum(file.stat().st_size for file in files),
        hint=huggingface.NAME,
        told={huggingface.CONFIG: config, **_sentences(path)},
    )


def digest(path: Path) -> str:
    """Return the SHA-256, in hex, of the list of files that are read from a directory, each with its own."""
    names = [CONFIG, *(file.name for file in _weight_files(path))]
    names += [name for name in (INDEX, POOLING, MODULES) if (path / name).is_file()]
    lines = "".join(f"{sha256(path / name)}  {name}\n" for name in sorted(names))
    return hashlib.sha256(lines.encode()).hexdigest()


def _weight_files(path: Path) -> list[Path]:
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        return [path / name for name in sorted(set(_weight_map(path).values()))]
    held = ", ".join(sorted(item.name for item in path.iterdir())[:12]) or "nothing"
    raise BadCheckpointError(
        f"the directory has neither {WEIGHTS} nor {INDEX}; it holds {held}",
        "save the model with model.save_pretrained(directory), which writes safetensors",
    )


def _weight_map(path: Path) -> dict[str, str]:
    """Return each tensor's file by the index."""
    listed = _object(path / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise BadCheckpointError(f"{INDEX} has no weight_map")
    for name in listed.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise UnsafeCheckpointError(f"{INDEX} names the file {name!r}, which is none of its directory")
        if not (path / name).is_file():
            raise BadCheckpointError(f"{INDEX} names {name}, which is missing")
    return listed


def _check_index(path: Path, entries: dict[str, Entry]) -> None:
    if (path / WEIGHTS).is_file():
        return
    differing = sorted(_weight_map(path).keys() ^ entries.keys())
    if differing:
        raise BadCheckpointError(f"{INDEX} and the files differ in {len(differing)} tensors, {differing[0]!r} first")


def _sentences(path: Path) -> dict[str, Any]:
    """Return how a directory of sentence-transformers makes one vector of a text; nothing for others."""
    if not (path / POOLING).is_file():
        return {}
    pooling = _object(path / POOLING)
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    mode = _MODES.get(modes[0], modes[0]) if len(modes) == 1 else " and ".join(modes) or None
    modules = _modules(path)
    others = [name for name in modules if name not in _KNOWN_MODULES]
    if others:
        raise BadCheckpointError(f"{MODULES} has {others[0]} behind the encoder; known: {', '.join(_KNOWN_MODULES)}")
    return {"pooling": mode, "is_normalised": "Normalize" in modules}


def _modules(path: Path) -> list[str]:
    if not (path / MODULES).is_file():
        return []
    listed = _json(path / MODULES)
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise BadCheckpointError(f"{MODULES} is no list of objects")
    return [str(item.get("type")).rpartition(".")[2] for item in listed]


def _object(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise BadCheckpointError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content


def _json(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise UnsafeCheckpointError(f"{path.name} has {size} bytes, at most {MAX_JSON_BYTES} are read")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BadCheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"{path.name} is not JSON: {error}") from error
