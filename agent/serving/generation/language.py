"""A loaded artifact as a language model: what reads, continues and spells. Used by ``network``; imports torch.

What an artifact can do is tried at its load: one that cannot make texts still serves its logits, and says why.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import structlog
import torch

from agent.architectures.huggingface_config import NEXT_TOKEN, text_cache
from agent.exhaustion import is_out_of_memory
from agent.serving.generation.codec import Codec
from agent.serving.generation.decoder import CachedDecoder
from agent.serving.generation.limits import limits_of
from agent.serving.generation.model import LanguageModel
from agent.serving.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = structlog.get_logger("generation")


class NoTextError(Exception):
    """Why an artifact makes no texts; a sentence without its end."""


def language_model(
    artifact: Path, sidecar: Mapping[str, Any], module: Any, device: torch.device, planned_bytes: int | None = None
) -> LanguageModel:
    """Return the language model in an artifact whose weights are loaded.

    Args:
        artifact: the tokenizer lies beside it.
        sidecar: of the artifact.
        module: what was loaded of it.
        device: where that is.
        planned_bytes: what its texts' keys and values may take, None for a share of what is free.

    Raises:
        NoTextError: it is none.
        RuntimeError: memory ran out, in one of torch's wordings.
    """
    if sidecar["options"].get("task") != NEXT_TOKEN.name:
        raise NoTextError("it answers tensors")
    told = sidecar.get("generation")
    if told is None:
        raise NoTextError("it came without a tokenizer.json")
    try:
        codec = Codec(_tokenizer(artifact, told["tokenizer"]), told["chat_template"], told["special_tokens"])
        decoder = CachedDecoder(module.network, device)
        vocabulary = int(sidecar["num_classes"])
        token_bytes = decoder.check(min(vocabulary, codec.vocabulary))
        cache = text_cache(module.network.config)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        log.warning("makes_no_texts", artifact=artifact.name, reason=reason)
        raise NoTextError(reason) from error
    limits = limits_of(cache, token_bytes, _available_bytes(device), planned_bytes)
    return LanguageModel(codec, decoder, limits, vocabulary, frozenset(told["eos_token_ids"]), token_bytes)


def _tokenizer(artifact: Path, told: Mapping[str, Any]) -> Path:
    path = artifact.with_name(told["file"])
    if path.parent != artifact.parent:
        raise NoTextError(f"its tokenizer is said to be {told['file']!r}, outside of its directory")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != told["sha256"]:
        raise NoTextError(f"{path.name} beside it is another one than it was built with")
    return path


def _available_bytes(device: torch.device) -> int:
    """Return the memory that is free for keys and values; on a shared memory CUDA's word is not the whole truth."""
    main = available_bytes()
    if device.type != "cuda":
        return main
    free, _total = torch.cuda.mem_get_info(device)
    return min(free, main) if torch.cuda.get_device_properties(device).is_integrated else free
