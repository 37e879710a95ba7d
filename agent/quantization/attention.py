"""``nn.MultiheadAttention`` with packed projections.

Its output projection is a child that looks like an ordinary Linear, but whose weight the parent hands to a
functional: swapping that child alone breaks the parent. So the parent is replaced as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from agent.quantization.layers import PackedLinear, Weight, cast, compute_dtype, dense

if TYPE_CHECKING:
    import torch


class PackedAttention(nn.Module):
    """``nn.MultiheadAttention`` for queries, keys and values of one width, with the same keys and results."""

    def __init__(self, source: nn.MultiheadAttention, in_proj: Weight, out_proj: nn.Module) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = source.embed_dim, source.num_heads
        self.batch_first = source.batch_first
        self.add_zero_attn = source.add_zero_attn
        self.in_proj_weight = in_proj
        self.in_proj_bias = source.in_proj_bias
        self.out_proj = out_proj
        # Read by nn.TransformerEncoderLayer, whose fused path would take the weights from under us.
        self._qkv_same_embed_dim = False

    def forward(  # noqa: PLR0917 - the signature of nn.MultiheadAttention
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002 - torch's signature
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002 - torch's signature
        is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's signature
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results are those of ``nn.MultiheadAttention``."""
        dtype = compute_dtype(query.device)
        is_turned = self.batch_first and query.dim() == 3  # noqa: PLR2004 - (batch, steps, width)
        q, k, v = ((t.transpose(0, 1) if is_turned else t).to(dtype) for t in (query, key, value))
        out, weights = functional.multi_head_attention_forward(
            q, k, v, self.embed_dim, self.num_heads,
            dense(self.in_proj_weight, dtype), cast(self.in_proj_bias, dtype),
            None, None, self.add_zero_attn, 0.0,
            self._out_weight(dtype), cast(self.out_proj.get_parameter("bias") if self._has_out_bias else None, dtype),
            training=False,
            key_padding_mask=_as_mask(key_padding_mask, dtype),
            need_weights=need_weights,
            attn_mask=_as_mask(attn_mask, dtype),
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )  # fmt: skip
        out = out.transpose(0, 1) if is_turned else out
        return out.to(query.dtype), None if weights is None else weights.to(query.dtype)

    @property
    def _has_out_bias(self) -> bool:
        return getattr(self.out_proj, "bias", None) is not None

    def _out_weight(self, dtype: torch.dtype) -> Tensor:
        if isinstance(self.out_proj, PackedLinear):
            return self.out_proj.weight.unpack(dtype)
        return self.out_proj.get_parameter("weight").to(dtype)


def _as_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return mask.to(dtype) if mask is not None and mask.is_floating_point() else mask
