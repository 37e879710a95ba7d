"""timm:NAME, any image classifier of the optional package ``timm``, e.g. ``timm:resnet18``.

Rules:
* The name is in no tensor, so it must be said; that the checkpoint fits it is proved like any other type's.
* Nothing is fetched: pretrained weights are never asked for, and names that point to a hub or a folder are refused.
* Classes and colour channels come from the tensors of the layers that timm names as first and last; the image size is
  that of the published weights, unless ``image_size`` accompanies the checkpoint.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from agent.architectures.errors import UnknownModelTypeError, UnrecognisedCheckpointError
from agent.architectures.model_type import ModelType, Options, Reading, Shapes, TensorSpec
from agent.architectures.optional import require
from agent.planning.model_types import TIMM_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX = TIMM_PREFIX
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_IMAGE = (3, 224, 224)
"""Channels, height and width where nothing is known of a checkpoint: what most published weights take."""
_COARSE = 8


def model_type(name: str) -> ModelType:
    """Return the type of that name, ``timm:`` included; timm itself is imported when a network is built.

    Raises:
        UnknownModelTypeError: the rest is no plain model name.
    """
    plain = name.removeprefix(PREFIX)
    if not _NAME.fullmatch(plain):
        raise UnknownModelTypeError(name, [f"{PREFIX}NAME of an architecture in timm.list_models()"])
    return ModelType(
        name=name,
        build=partial(_build, plain),
        classifier_key="",
        matches=lambda shapes: len(shapes) > 0,
        read=partial(_read, plain),
        inputs=_inputs,
        synthetic_inputs=_synthetic,
    )


def _build(name: str, num_classes: int, *, image: Sequence[int] = _IMAGE, is_sized: bool = False) -> nn.Module:
    """Return a network.

    Args:
        name: the architecture.
        num_classes: rows of the last layer.
        image: channels, height and width of an input.
        is_sized: whether the architecture is built for that height and width.
    """
    extra = {"img_size": tuple(image[1:])} if is_sized else {}
    network: nn.Module = _create(name, num_classes=num_classes, in_chans=image[0], **extra)
    return network


def _create(name: str, **options: Any) -> Any:
    timm = require("timm", "timm", f"a model of type {PREFIX}{name}")
    if not timm.is_model(name):
        raise UnknownModelTypeError(f"{PREFIX}{name}", [f"{len(timm.list_models())} names in timm.list_models()"])
    return timm.create_model(name, pretrained=False, **options)


def _read(name: str, shapes: Shapes, sidecar: Mapping[str, Any]) -> Reading:
    with torch.device("meta"):
        published: Mapping[str, Any] = _create(name).pretrained_cfg
    channels = shapes.size(f"{_first(published, 'first_conv', name)}.weight", axis=1)
    sides, is_sized = list(published["input_size"][1:]), "image_size" in sidecar
    if is_sized:
        sides = _sides(sidecar["image_size"])
    options = {"image": [channels, *sides], "is_sized": is_sized}
    return Reading(options, num_classes=shapes.size(f"{_first(published, 'classifier', name)}.weight"))


def _first(published: Mapping[str, Any], key: str, name: str) -> str:
    """Return the layer that timm names; distilled types have two heads of equal size."""
    found = published.get(key)
    layer = found[0] if isinstance(found, (tuple, list)) and found else found
    if not isinstance(layer, str) or not layer:
        raise UnrecognisedCheckpointError(f"timm does not say which layer of {name!r} is its {key}: it is {found!r}")
    return layer


def _sides(told: Any) -> list[int]:
    sides = [told, told] if isinstance(told, int) else told
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):  # noqa: PLR2004 - height and width
        raise UnrecognisedCheckpointError(f"the sidecar says image_size {told!r}: a number or two are needed")
    return sides


def _inputs(options: Options) -> tuple[TensorSpec, ...]:
    return (TensorSpec("input", "FP32", (-1, *options.get("image", _IMAGE))),)


def _synthetic(options: Options, rows: int, generator: np.random.Generator) -> dict[str, Tensor]:
    """Return blurred noise of variance near 1, as normalised photographs have."""
    channels, height, width = options.get("image", _IMAGE)
    coarse = torch.from_numpy(generator.standard_normal((rows, channels, _COARSE, _COARSE), dtype=np.float32))
    return {"input": torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")}
