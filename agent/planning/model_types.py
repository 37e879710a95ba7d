"""The model types a device can serve: their names, what each is, and what checkpoints call them.

Pure data, no torch: the supervisor announces and checks names with it, and the modules that hold the definitions
(``agent.architectures``) must agree with it. It does not describe layers and knows no plug-in types.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelTypeInfo:
    """One model type.

    Attributes:
        name: the name on the wire and in artifacts.
        description: one line for people.
        aliases: other names that checkpoints and their trainers' files use for it. An alias may belong to several
            types (``radical_rnn`` does): it narrows the choice, the tensors decide.
    """

    name: str
    description: str
    aliases: tuple[str, ...] = ()


MODEL_TYPES: dict[str, ModelTypeInfo] = {
    info.name: info
    for info in (
        ModelTypeInfo("cnn", "depthwise-separable convolutions with squeeze-and-excitation"),
        ModelTypeInfo("rnn", "bidirectional LSTM over statistics of 8x8 image cells", ("basic_rnn",)),
        ModelTypeInfo("rnn-hybrid", "convolutions, then an LSTM over the map's positions", ("hybrid_cnn_rnn",)),
        ModelTypeInfo("rnn-stroke", "LSTM over stroke features with self-attention", ("stroke_rnn",)),
        ModelTypeInfo("rnn-radical", "LSTM over radical ids", ("radical_rnn", "simple_radical_rnn")),
        ModelTypeInfo(
            "rnn-linguistic", "radical-rnn under its other name, with a larger vocabulary", ("linguistic_radical_rnn",)
        ),
        ModelTypeInfo("hiercode", "small convolutional backbone with a batch-normalised head"),
        ModelTypeInfo(
            "hiercode-higita", "image patches grouped to strokes, radicals and a character", ("hiercode_higita",)
        ),
        ModelTypeInfo("qat", "cnn without attention, from quantization-aware training"),
        ModelTypeInfo("radical-rnn", "convolutions pick four radical ids, an LSTM reads them", ("radical_rnn",)),
        ModelTypeInfo("vit", "vision transformer over image patches"),
    )
}


def names() -> tuple[str, ...]:
    """Return the names of all built-in model types."""
    return tuple(MODEL_TYPES)


def named(name: str) -> tuple[str, ...]:
    """Return the model types that ``name`` can mean: itself, those with it as an alias, or none."""
    if name in MODEL_TYPES:
        return (name,)
    return tuple(info.name for info in MODEL_TYPES.values() if name in info.aliases)


HUGGING_FACE = "hf"
TIMM_PREFIX = "timm:"


def is_library(name: str) -> bool:
    """Return whether ``name`` is one of another library's models: ``hf``, or ``timm:`` and a name of that package.

    Whether the library is there and knows the name is found out by the builder, which is where it would be.
    """
    return name == HUGGING_FACE or (name.startswith(TIMM_PREFIX) and len(name) > len(TIMM_PREFIX))
