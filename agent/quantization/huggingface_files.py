"""Reading a Hugging Face model, a directory or an archive of one: ``config.json`` with safetensors, whole or in shards.

Rules:
* Only safetensors is read; each file passes the checks that a single one does.
* An index names files beside it and nothing else, and must agree with what they hold.
* Code in there is never looked at. Of an archive nothing is unpacked: weights are mapped where they lie.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agent.architectures import huggingface
from agent.architectures.huggingface_config import resolve, task_of
from agent.architectures.huggingface_network import stored_names
from agent.archives import ArchiveError, Member, members
from agent.quantization import labels
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

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
TEXT_FILES = (TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, GENERATION)
"""What a language model needs besides its weights to make texts; see ``huggingface_text``."""

MAX_JSON_BYTES = 16 << 20
"""An index has about 100 bytes a tensor, a configuration with 20,000 labels 1 MiB."""
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


Files = Mapping[str, Member]


def open_files(path: Path) -> Checkpoint:
    """Open the checkpoint in a directory or archive; its configuration is in ``told``.

    Raises:
        BadCheckpointError: files are missing, damaged, or disagree.
        UnsafeCheckpointError: an index or archive points outside of itself.
        ArchitectureError: the model is none that can be served.
    """
    files = files_in(path)
    config = json_object(files, CONFIG)
    entries: dict[str, Entry] = {}
    weights = _weight_files(files)
    for name in weights:
        found = safetensors_entries(files[name].path, files[name].start, files[name].size)
        twice = sorted(entries.keys() & found.keys())
        if twice:
            raise UnsafeCheckpointError(f"{len(twice)} tensors are in two files, {twice[0]!r} in {name} again")
        entries |= found
    _check_index(files, entries)
    resolved = resolve(config)
    names = stored_names(resolved, task_of(resolved), entries)
    return Checkpoint(
        entries={new: entries[old] for new, old in names.items()},
        file_bytes=sum(files[name].size for name in weights),
        hint=huggingface.NAME,
        told={huggingface.CONFIG: config, **_sentences(files)},
        labels=labels.of_config(config),
    )


def digest(path: Path) -> str:
    """Return the SHA-256, in hex, of an archive, or of the list of files that are read from a directory."""
    if not path.is_dir():
        return sha256(path)
    files = files_in(path)
    others = (INDEX, POOLING, MODULES, *TEXT_FILES)
    names = [CONFIG, *_weight_files(files), *(name for name in others if name in files)]
    lines = "".join(f"{sha256(files[name].path)}  {name}\n" for name in sorted(names))
    return hashlib.sha256(lines.encode()).hexdigest()


def files_in(path: Path) -> Files:
    """Return what is in a directory or archive, by name.

    Raises:
        BadCheckpointError: an archive is damaged.
        UnsafeCheckpointError: it was made to deceive.
    """
    try:
        return members(path)
    except ArchiveError as error:
        raise (UnsafeCheckpointError if error.is_unsafe else BadCheckpointError)(error.detail, error.hint) from error


def _weight_files(files: Files) -> list[str]:
    if WEIGHTS in files:
        return [WEIGHTS]
    if INDEX in files:
        return sorted(set(_weight_map(files).values()))
    held = ", ".join(sorted(files)[:12]) or "nothing"
    raise BadCheckpointError(
        f"there is neither {WEIGHTS} nor {INDEX} beside {CONFIG}, but {held}",
        "save the model with model.save_pretrained(directory), which writes safetensors",
    )


def _weight_map(files: Files) -> dict[str, str]:
    """Return each tensor's file by the index."""
    listed = json_object(files, INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise BadCheckpointError(f"{INDEX} has no weight_map")
    for name in listed.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise UnsafeCheckpointError(f"{INDEX} names the file {name!r}, which is none of its directory")
        if name not in files:
            raise BadCheckpointError(f"{INDEX} names {name}, which is missing")
    return listed


def _check_index(files: Files, entries: dict[str, Entry]) -> None:
    if WEIGHTS in files:
        return
    differing = sorted(_weight_map(files).keys() ^ entries.keys())
    if differing:
        raise BadCheckpointError(f"{INDEX} and the files differ in {len(differing)} tensors, {differing[0]!r} first")


def _sentences(files: Files) -> dict[str, Any]:
    """Return how a model of sentence-transformers makes one vector of a text; nothing for others."""
    if POOLING not in files:
        return {}
    pooling = json_object(files, POOLING)
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    mode = _MODES.get(modes[0], modes[0]) if len(modes) == 1 else " and ".join(modes) or None
    modules = _modules(files)
    others = [name for name in modules if name not in _KNOWN_MODULES]
    if others:
        raise BadCheckpointError(f"{MODULES} has {others[0]} behind the encoder; known: {', '.join(_KNOWN_MODULES)}")
    return {"pooling": mode, "is_normalised": "Normalize" in modules}


def _modules(files: Files) -> list[str]:
    if MODULES not in files:
        return []
    listed = _json(files, MODULES)
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise BadCheckpointError(f"{MODULES} is no list of objects")
    return [str(item.get("type")).rpartition(".")[2] for item in listed]


def json_object(files: Files, name: str) -> dict[str, Any]:
    """Return the object in a file of JSON.

    Raises:
        BadCheckpointError: it is missing, no JSON, or no object.
        UnsafeCheckpointError: it is larger than any such file is.
    """
    content = _json(files, name)
    if not isinstance(content, dict):
        raise BadCheckpointError(f"{name} holds a {type(content).__name__}, not an object")
    return content


def _json(files: Files, name: str) -> Any:
    if name not in files:
        raise BadCheckpointError(f"{name} is missing; there are {', '.join(sorted(files)[:12]) or 'no files'}")
    if files[name].size > MAX_JSON_BYTES:
        raise UnsafeCheckpointError(f"{name} has {files[name].size} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        return json.loads(files[name].read())
    except OSError as error:
        raise BadCheckpointError(f"{name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"{name} is not JSON: {error}") from error
