"""The JSON that a training writes beside its checkpoints, for what no tensor shape tells: a transformer's heads.

The guide's project keeps it as ``vit_config.json`` in the checkpoint's folder, or in ``config`` beside that folder.
A device keeps a checkpoint alone: there the file itself has to tell, in ``config`` or in a safetensors header.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agent.quantization.errors import BadCheckpointError
from agent.quantization.layouts import UNSHAPED

if TYPE_CHECKING:
    from pathlib import Path

NAME = "vit_config.json"
MAX_BYTES = 1 << 20


def beside(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what a file beside the checkpoint tells, and a sentence that says so.

    Raises:
        BadCheckpointError: there is such a file, and it is no JSON object.
    """
    for folder in (path.parent, path.parent.parent / "config"):
        file = folder / NAME
        if file.is_file() and file.stat().st_size <= MAX_BYTES:
            return _read(file)
    return {}, ()


def _read(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpointError(f"{file} beside the checkpoint cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BadCheckpointError(f"{file} beside the checkpoint is a {type(content).__name__}, not an object")
    found = {name: content[name] for name in UNSHAPED if name in content}
    return found, tuple(f"{name} {value!r} is from {file.name} beside the checkpoint" for name, value in found.items())
