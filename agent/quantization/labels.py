"""What a checkpoint calls its classes, if it says so in one of the ways that are customary.

A list ``classes`` beside the state dict, JSON under the same name in a safetensors file's metadata, and ``id2label`` of
a Hugging Face configuration. What is no list of short texts is taken for nothing: names are for people, and no build
fails for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

KEY = "classes"
LONGEST = 200
_PLACEHOLDER = re.compile(r"LABEL_\d+")
"""What the library ``transformers`` writes where nobody named the classes."""

Labels = tuple[str, ...]


def of_pickle(loaded: Any) -> Labels:
    """Return the names in what a pickled checkpoint holds; none if there are none."""
    return _listed(loaded.get(KEY)) if isinstance(loaded, Mapping) else ()


def of_metadata(metadata: Mapping[str, str]) -> Labels:
    """Return the names in the metadata of a safetensors file."""
    try:
        return _listed(json.loads(metadata.get(KEY, "null")))
    except (ValueError, RecursionError):
        return ()


def of_config(config: Mapping[str, Any]) -> Labels:
    """Return the names in a configuration of the library ``transformers``."""
    named = config.get("id2label")
    if not isinstance(named, Mapping):
        return ()
    found = _listed([named.get(str(index)) for index in range(len(named))])
    return () if all(map(_PLACEHOLDER.fullmatch, found)) else found


def _listed(value: Any) -> Labels:
    is_list = isinstance(value, (list, tuple)) and all(
        isinstance(name, str) and 0 < len(name) <= LONGEST for name in value
    )
    return tuple(value) if is_list else ()
