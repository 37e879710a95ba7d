"""vit: a vision transformer (Dosovitskiy et al., arXiv 2010.11929) over patches of an image or of a token map.

The number of attention heads is in no tensor's shape. A wrong one gives wrong answers without any error, so what is
assumed is said in a note.
"""

from __future__ import annotations

from itertools import pairwise
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.architectures.errors import UnrecognisedCheckpointError
from agent.architectures.images import SIDE, as_images, image_input, synthetic_images
from agent.architectures.model_type import ModelType, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TOKEN_CHANNELS = 16
_TOKEN_LAYERS = 3
_HEAD_WIDTH = 32
"""Width of a head in both default forms: 256 in 8 heads and 64 in 2."""


class TokenConvolutions(nn.Module):
    """Convolutions at full resolution in front of the patches (after T2T, Yuan et al., arXiv 2101.11986)."""

    def __init__(self, kernels: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for kernel, (inner, outer) in zip(kernels, pairwise([1, *channels]), strict=True):
            convolution = nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(outer), nn.ReLU()]
        self.t2t_layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(batch, channels, 64, 64)``."""
        tokens: Tensor = self.t2t_layers(images)
        return tokens


class Attention(nn.Module):
    """Multi-head self-attention whose heads are contiguous slices of the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads of equal width")
        self._heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``(batch, tokens, width)``."""
        query, key, value = (self._split(layer(tokens)) for layer in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        joined: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return joined

    def _split(self, tokens: Tensor) -> Tensor:
        """Return ``(batch, heads, tokens, width / heads)``."""
        batch, count, width = tokens.shape
        return tokens.reshape(batch, count, self._heads, width // self._heads).transpose(1, 2)


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.GELU(), nn.Dropout(0.1), nn.Linear(mlp_width, width), nn.Dropout(0.1)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``(batch, tokens, width)``."""
        tokens = tokens + self.attention(self.norm1(tokens))
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class VisionTransformer(nn.Module):
    """The network.

    Args:
        num_classes: rows of the last layer.
        patch_size: side of a patch in pixels.
        width: of a token.
        heads: of each attention.
        blocks: transformer blocks.
        mlp_width: hidden width of each block's MLP.
        token_convolutions: kernels and output channels of the convolutions in front; empty for none.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        patch_size: int,
        width: int,
        heads: int,
        blocks: int,
        mlp_width: int,
        token_convolutions: tuple[Sequence[int], Sequence[int]],
    ) -> None:
        super().__init__()
        if patch_size < 1 or SIDE % patch_size:
            raise ValueError(f"patches of {patch_size} pixels do not tile an image of {SIDE}")
        kernels, channels = token_convolutions
        self._patch_size = patch_size
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIDE // patch_size) ** 2 + 1, width))
        self.t2t = TokenConvolutions(kernels, channels) if kernels else None
        self.patch_embed = nn.Linear((channels[-1] if kernels else 1) * patch_size**2, width)
        self.transformer = nn.Sequential(*(Block(width, heads, mlp_width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(batch, num_classes)`` logits of images of 4096 values each, in any layout."""
        features = as_images(images)
        if self.t2t is not None:
            features = self.t2t(features)
        patches = functional.unfold(features, self._patch_size, stride=self._patch_size).transpose(1, 2)
        embedded = self.patch_embed(patches)
        class_token = self.class_token.expand(embedded.shape[0], -1, -1)
        tokens = self.transformer(torch.cat([class_token, embedded], dim=1) + self.pos_embed)
        logits: Tensor = self.classifier(self.norm(tokens[:, 0]))
        return logits


def build(
    num_classes: int,
    *,
    patch_size: int = 8,
    embedding_dim: int = 256,
    num_heads: int = 8,
    num_transformer_layers: int = 12,
    mlp_dim: int = 1024,
    use_tokens_to_tokens: bool = True,
    t2t_kernel_sizes: Sequence[int] = (3,) * _TOKEN_LAYERS,
    t2t_channels: Sequence[int] | None = None,
) -> nn.Module:
    """Return a vit; ``t2t_channels`` is 16 for every kernel unless given."""
    kernels = t2t_kernel_sizes if use_tokens_to_tokens else ()
    channels = [_TOKEN_CHANNELS] * len(kernels) if t2t_channels is None else t2t_channels
    return VisionTransformer(
        num_classes,
        patch_size=patch_size,
        width=embedding_dim,
        heads=num_heads,
        blocks=num_transformer_layers,
        mlp_width=mlp_dim,
        token_convolutions=(kernels, channels),
    )


def _read(shapes: Shapes, sidecar: Mapping[str, Any]) -> Reading:
    width = shapes.size("pos_embed", axis=2)
    heads, notes = _read_heads(width, sidecar)
    layers = range(0, 3 * shapes.count("t2t.t2t_layers.{}.weight", step=3), 3)
    options: dict[str, Any] = {
        "patch_size": _patch_size(shapes.size("pos_embed", axis=1) - 1),
        "embedding_dim": width,
        "num_heads": heads,
        "num_transformer_layers": shapes.count("transformer.{}.norm1.weight"),
        "mlp_dim": shapes.size("transformer.0.mlp.0.weight"),
        "use_tokens_to_tokens": bool(layers),
    }
    if layers:
        options["t2t_kernel_sizes"] = [shapes.size(f"t2t.t2t_layers.{layer}.weight", axis=2) for layer in layers]
        options["t2t_channels"] = [shapes.size(f"t2t.t2t_layers.{layer}.weight") for layer in layers]
    return Reading(options, notes=notes)


def _patch_size(patches: int) -> int:
    side = isqrt(patches)
    if side < 1 or side * side != patches or SIDE % side:
        raise UnrecognisedCheckpointError(
            f"tensor 'pos_embed' has {patches} positions besides the class token: "
            f"not a square grid of patches of an image of {SIDE} pixels"
        )
    return SIDE // side


def _read_heads(width: int, sidecar: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return the number of heads and a note if it had to be assumed."""
    told = sidecar.get("num_heads")
    if told is not None:
        if not isinstance(told, int) or isinstance(told, bool) or told < 1 or width % told:
            raise UnrecognisedCheckpointError(
                f"the checkpoint's configuration says {told!r} attention heads, which cannot split a width of {width}"
            )
        return told, ()
    if width % _HEAD_WIDTH:
        raise UnrecognisedCheckpointError(
            f"attention heads are in no tensor shape and width {width} has no default: "
            "put num_heads into the file's config or safetensors metadata, or its vit_config.json beside it"
        )
    heads = width // _HEAD_WIDTH
    note = (
        f"attention heads are in no tensor shape: assumed {heads} ({_HEAD_WIDTH} values each, as the default forms "
        f"have) for width {width}; a wrong count gives wrong answers without an error"
    )
    return heads, (note,)


def _matches(shapes: Shapes) -> bool:
    return "pos_embed" in shapes and "transformer.0.norm1.weight" in shapes


VIT = ModelType(
    name="vit",
    build=build,
    classifier_key="classifier.weight",
    matches=_matches,
    read=_read,
    inputs=image_input,
    synthetic_inputs=synthetic_images,
)
