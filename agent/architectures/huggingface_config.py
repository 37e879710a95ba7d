"""Configurations of the package ``transformers``: what a model is and what it is for, before it is built.

Rules:
* A configuration names one of the library's own classes. Code that comes with a checkpoint is never run, whatever the
  configuration says, and nothing is fetched: the library is imported offline.
* Precision is not the configuration's to choose, so its dtypes are dropped.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.architectures.errors import UnrecognisedCheckpointError, quoted
from agent.architectures.optional import MissingPackageError, require
from agent.planning.texts import TextCache

if TYPE_CHECKING:
    from collections.abc import Mapping

PURPOSE = "a Hugging Face model"
DEFAULT_CONTEXT = 2048
"""Context of a model whose configuration names none (ALiBi, for one)."""
_DROPPED = frozenset({"auto_map", "attn_implementation", "dtype", "torch_dtype", "transformers_version"})
"""Keys of a configuration that choose code or precision, which are chosen here."""


@dataclass(frozen=True)
class Task:
    """What a class of the library is for.

    Attributes:
        name: as it stands in an artifact's options.
        tables: the library's tables of the classes that do it, by type of configuration
            (``transformers/models/auto/modeling_auto.py``).
        is_image: whether its input is an image; else ids and a mask.
    """

    name: str
    tables: tuple[str, ...]
    is_image: bool = False


IMAGE_CLASSES = Task("image-classification", ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",), is_image=True)
TEXT_CLASSES = Task("text-classification", ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",))
NEXT_TOKEN = Task("next-token", ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",))
EMBEDDING = Task("embedding", ("MODEL_MAPPING_NAMES", "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES"))
TASKS = {task.name: task for task in (IMAGE_CLASSES, TEXT_CLASSES, NEXT_TOKEN, EMBEDDING)}


def library() -> Any:
    """Return the package, imported so that it does not reach for the network.

    Raises:
        MissingPackageError: it is not installed, or older than 5.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    package = require("transformers", "transformers", PURPOSE)
    if int(package.__version__.split(".")[0]) < 5:  # noqa: PLR2004 - the first that says how older keys are renamed
        reason = f"5 or later is needed, {package.__version__} is installed"
        raise MissingPackageError("transformers", "transformers", PURPOSE, reason)
    return package


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with every default spelt out, as JSON can hold it, without what would choose code.

    Raises:
        UnrecognisedCheckpointError: the library does not know its type, or refuses it.
    """
    if config.get("quantization_config") is not None:
        raise UnrecognisedCheckpointError("the checkpoint is quantized already: take the one that it was made from")
    spelt_out: dict[str, Any] = json.loads(configuration(_cleaned(config)).to_json_string(use_diff=False))
    cleaned: dict[str, Any] = _cleaned(spelt_out)
    return cleaned


def task_of(config: Mapping[str, Any]) -> Task:
    """Return what the class that a configuration names is for.

    Raises:
        UnrecognisedCheckpointError: it names none, or one that is for something else.
    """
    tables = require("transformers.models.auto.modeling_auto", "transformers", PURPOSE)
    name, kind = class_name(config), config.get("model_type")
    for task in TASKS.values():
        listed = [getattr(tables, table).get(kind, ()) for table in task.tables]
        if any(name == entry or (isinstance(entry, tuple) and name in entry) for entry in listed):
            return task
    raise UnrecognisedCheckpointError(
        f"{name} of configuration type {kind!r} is for none of {', '.join(TASKS)}; "
        "save the model with the class of its task"
    )


def configuration(config: Mapping[str, Any]) -> Any:
    """Return the library's own object for a configuration.

    Raises:
        UnrecognisedCheckpointError: the library does not know its type, or refuses it.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UnrecognisedCheckpointError(f"the configuration's model_type is {kind!r}; keys: {quoted(config)}")
    try:
        return library().AutoConfig.for_model(**config)
    except MissingPackageError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        raise UnrecognisedCheckpointError(f"transformers refuses the configuration: {reason}") from error


def text_cache(config: Any) -> TextCache:
    """Return how a causal language model remembers, by the library's own object, which knows older keys as well.

    Models that remember otherwise, or whose keys and values differ in width, are measured once they are loaded.
    """
    told = config.get_text_config()
    heads = int(told.num_attention_heads)
    return TextCache(
        layers=int(told.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(told, "num_key_value_heads", None) or heads),
        head_width=int(getattr(told, "head_dim", None) or told.hidden_size // heads),
        context_tokens=int(getattr(told, "max_position_embeddings", None) or DEFAULT_CONTEXT),
    )


def _cleaned(value: Any) -> Any:
    """Return a configuration without private keys and those of `_DROPPED`, at every depth."""
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if not hasattr(value, "items"):
        return value
    return {key: _cleaned(item) for key, item in value.items() if key not in _DROPPED and not key.startswith("_")}


def class_name(config: Mapping[str, Any]) -> str:
    """Return the class that a configuration names.

    Raises:
        UnrecognisedCheckpointError: it names none.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UnrecognisedCheckpointError(f"the configuration names no class: its architectures are {names!r}")
    return names[0]
