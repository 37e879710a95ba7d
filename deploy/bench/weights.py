"""Makes one large transformer checkpoint and spells it three ways.

They are a `.pt` and a safetensors file with the names of `vit`, and a Hugging Face directory with those of
`ViTForImageClassification`. Both name the same function of the same tensors: a patch projection is a convolution there
and a Linear over unfolded patches here, all else differs by name alone. Values are random; time and memory do not
depend on them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from agent import architectures
from agent.quantization import modules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIDE = 64
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.proj": "attention.output.dense",
    "mlp.0": "intermediate.dense",
    "mlp.3": "output.dense",
}
_OUTSIDE = {
    "class_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "classifier": "classifier",
}


@dataclass(frozen=True)
class Form:
    """Sizes of the transformer. Large patches keep the gate's forward passes short beside the quantizing."""

    width: int = 1024
    blocks: int = 22
    mlp_width: int = 4096
    patch: int = 32
    classes: int = 3036

    @property
    def heads(self) -> int:
        """Of 32 values each, which is what `vit` assumes where nothing is said."""
        return self.width // 32

    @property
    def options(self) -> dict[str, Any]:
        """What `agent.architectures.build` takes."""
        return {
            "patch_size": self.patch,
            "embedding_dim": self.width,
            "num_heads": self.heads,
            "num_transformer_layers": self.blocks,
            "mlp_dim": self.mlp_width,
            "use_tokens_to_tokens": False,
        }

    @property
    def huggingface(self) -> dict[str, Any]:
        """The `config.json` of the same model."""
        return {
            "architectures": ["ViTForImageClassification"],
            "model_type": "vit",
            "hidden_size": self.width,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp_width,
            "image_size": SIDE,
            "patch_size": self.patch,
            "num_channels": 1,
            "layer_norm_eps": 1e-5,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "id2label": {str(label): str(label) for label in range(self.classes)},
            "label2id": {str(label): label for label in range(self.classes)},
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every tensor's shape by the names of `vit`."""
        model = modules.build_empty("vit", self.classes, self.options)
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    @property
    def total_bytes(self) -> int:
        """Of the float32 tensors."""
        return sum(4 * prod(shape) for shape in self.shapes().values())

    @property
    def largest_bytes(self) -> int:
        """Of the largest float32 tensor."""
        return max(4 * prod(shape) for shape in self.shapes().values())


def write(form: Form, folder: Path) -> dict[str, Path]:
    """Write the checkpoint into ``folder`` in all three spellings; return their paths by `pt`, `safetensors`, `hf`."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in form.shapes().items()}
    paths = {"pt": folder / "model.pt", "safetensors": folder / "model.safetensors", "hf": folder / "huggingface"}
    torch.save({"epoch": 0, "model_state_dict": tensors}, paths["pt"])
    save_file(tensors, paths["safetensors"])
    paths["hf"].mkdir()
    save_file(dict(_renamed(tensors, form)), paths["hf"] / "model.safetensors", metadata={"format": "pt"})
    (paths["hf"] / "config.json").write_text(json.dumps(form.huggingface), encoding="utf-8")
    return paths


def recognised(form: Form) -> architectures.Recognised:
    """Return what a checkpoint of that form is recognised as."""
    return architectures.recognise(form.shapes())


def _renamed(tensors: dict[str, torch.Tensor], form: Form) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors.items():
        is_projection = name == "patch_embed.weight"
        yield foreign_name(name), tensor.view(form.width, 1, form.patch, form.patch) if is_projection else tensor


def foreign_name(name: str) -> str:
    """Return what `ViTForImageClassification` calls a tensor of `vit`."""
    path, _, leaf = name.rpartition(".")
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if path in _OUTSIDE:
        return f"{_OUTSIDE[path]}.{leaf}"
    _transformer, index, within = path.split(".", 2)
    return f"vit.encoder.layer.{index}.{_BLOCK[within]}.{leaf}"
