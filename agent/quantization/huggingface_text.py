"""What a language model needs besides its weights to make texts: its tokenizer, where texts end, how chats are written.

The tokenizer's file is put beside the artifact as it is. The rest has several forms in Hugging Face directories; it is
brought into one here, in the sidecar's ``generation``, so that a server reads only that. A checkpoint without a usable
``tokenizer.json`` is served all the same, with a note that it makes no texts.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from agent.architectures.huggingface import CONFIG as OPTION_CONFIG
from agent.architectures.huggingface_config import NEXT_TOKEN, PURPOSE
from agent.architectures.optional import require
from agent.planning.model_types import HUGGING_FACE
from agent.quantization import huggingface_files as files
from agent.quantization.errors import BadCheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from agent.architectures import Recognised
    from agent.quantization.huggingface_files import Files

JsonObject = dict[str, Any]
SUFFIX = ".tokenizer.json"
"""In place of an artifact's own suffix."""
MAX_TOKENIZER_BYTES = 64 << 20
"""The largest vocabularies in use, of 256,000 tokens, make about 35 MB."""
MAX_TEMPLATE_BYTES = 1 << 20
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Tokens that templates ask for by name."""
DEFAULT_TEMPLATE = "default"


def is_language_model(found: Recognised) -> bool:
    """Return whether a recognised checkpoint could make texts."""
    return found.model_type == HUGGING_FACE and found.options["task"] == NEXT_TOKEN.name


def carry(source: Path, found: Recognised, artifact: Path) -> tuple[JsonObject | None, tuple[str, ...]]:
    """Put the tokenizer beside the artifact; return the sidecar's ``generation``, or None and notes that say why.

    Args:
        source: the directory or archive.
        found: what it is, a language model.
        artifact: the artifact's path, which need not exist yet.
    """
    try:
        return _carried(files.files_in(source), found, artifact), ()
    except (BadCheckpointError, UnsafeCheckpointError) as error:
        return None, (f"it makes no texts, its logits are served: {error.detail}",)


def _carried(held: Files, found: Recognised, artifact: Path) -> JsonObject:
    content = _tokenizer(held, found.num_classes)
    target = artifact.with_name(artifact.stem + SUFFIX)
    told = files.json_object(held, files.TOKENIZER_CONFIG) if files.TOKENIZER_CONFIG in held else {}
    template = _template(held, told)
    ends = _ends(held, found.options[OPTION_CONFIG])
    target.write_bytes(content)
    return {
        "tokenizer": {"file": target.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)},
        "eos_token_ids": [token for token in ends if token < found.num_classes],
        "chat_template": template,
        "special_tokens": dict(_special(told)),
    }


def _tokenizer(held: Files, vocabulary: int) -> bytes:
    if files.TOKENIZER not in held:
        raise BadCheckpointError(
            f"there is no {files.TOKENIZER}; AutoTokenizer.from_pretrained(…).save_pretrained(…) writes it"
        )
    size = held[files.TOKENIZER].size
    if size > MAX_TOKENIZER_BYTES:
        raise UnsafeCheckpointError(f"{files.TOKENIZER} has {size} bytes, at most {MAX_TOKENIZER_BYTES} are read")
    content = held[files.TOKENIZER].read()
    try:
        tokenizer = require("tokenizers", "transformers", PURPOSE).Tokenizer.from_buffer(content)
    except Exception as error:
        raise BadCheckpointError(f"{files.TOKENIZER} is no tokenizer: {str(error)[:200]}") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocabulary:
        raise BadCheckpointError(f"{files.TOKENIZER} has ids up to {largest}, the model only below {vocabulary}")
    return bytes(content)


def _template(held: Files, told: Mapping[str, Any]) -> str | None:
    """Return the chat template: from its own file, else from the tokenizer's configuration, alone or among others."""
    if files.TEMPLATE in held:
        size = held[files.TEMPLATE].size
        if size > MAX_TEMPLATE_BYTES:
            raise UnsafeCheckpointError(f"{files.TEMPLATE} has {size} bytes, at most {MAX_TEMPLATE_BYTES} are read")
        return held[files.TEMPLATE].read().decode("utf-8", "replace")
    template = told.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get(DEFAULT_TEMPLATE)
    return template if isinstance(template, str) and len(template) <= MAX_TEMPLATE_BYTES else None


def _ends(held: Files, config: Mapping[str, Any]) -> list[int]:
    """Return the ids that end a text: what the checkpoint says for generating, else what its configuration says."""
    told = files.json_object(held, files.GENERATION) if files.GENERATION in held else {}
    ends = told.get("eos_token_id")
    if ends is None:
        ends = (config.get("text_config") or config).get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    return sorted({token for token in listed if type(token) is int and token >= 0})


def _special(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in SPECIAL:
        token = told.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text:
            yield name, text
