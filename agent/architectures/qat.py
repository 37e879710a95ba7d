"""qat: the cnn without attention, trained with simulated quantization.

Its checkpoints carry the trainer's fake-quantization tensors beside the weights. They are recognised by a path
component, not by a list, because torch names observers differently from version to version. The network here is the
float one: without them it computes slightly different answers, which the notes say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.architectures.cnn import CHANNELS, SeparableCnn, read_blocks
from agent.architectures.images import image_input, synthetic_images
from agent.architectures.model_type import ModelType, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

_AUXILIARY = r"(^|\.)(weight_fake_quant|activation_post_process)(\.|$)"


def build(num_classes: int, *, hidden_size: int = 1024, channels: Sequence[int] = CHANNELS) -> nn.Module:
    """Return the float network; its hidden width does not grow with the classes."""
    return SeparableCnn(num_classes, hidden_size, channels, squeeze=())


def _read(shapes: Shapes, _sidecar: Mapping[str, Any]) -> Reading:
    auxiliary = shapes.matching(_AUXILIARY)
    if not auxiliary:
        return Reading(read_blocks(shapes))
    note = (
        f"{len(auxiliary)} fake-quantization tensors are left out: the float network answers slightly differently "
        "from the one that its training evaluated"
    )
    return Reading(read_blocks(shapes), unused=auxiliary, notes=(note,))


def _matches(shapes: Shapes) -> bool:
    return "conv5.0.weight" in shapes and "attention3.fc.0.weight" not in shapes


QAT = ModelType(
    name="qat",
    build=build,
    classifier_key="classifier.4.weight",
    matches=_matches,
    read=_read,
    inputs=image_input,
    synthetic_inputs=synthetic_images,
)
