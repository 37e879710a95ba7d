"""Networks in a form that an ONNX graph can hold, with the same weights and the same answers.

Rules:
* Recurrent layers become ONNX's own operators, one node a layer, so a graph takes sequences of any length. Tracing
  them instead would write out one copy of the cell per step.
* Lengths go to the operator's ``sequence_lens``, whose reverse direction starts at each sample's last valid step and
  whose outputs past it are zero: what packing a sequence does in torch.
* A graph cannot raise: checks of lengths and ids are left to who feeds it.

The operators are `LSTM <https://onnx.ai/onnx/operators/onnx__LSTM.html>`_, GRU and RNN. Whether a form answers as the
network does is not claimed here but measured by ``onnx.export``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from agent.architectures.rnn_radical import RadicalRnn
from agent.architectures.rnn_stroke import StrokeRnn
from agent.quantization.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

_OPERATORS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    # torch's mode: operator, its gates as places in torch's order, what else it must be told
    "LSTM": ("LSTM", (0, 3, 1, 2), {}),
    "GRU": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "RNN_TANH": ("RNN", (0,), {"activations": ["Tanh"]}),
    "RNN_RELU": ("RNN", (0,), {"activations": ["Relu"]}),
}
"""torch's gates are i, f, g, o (LSTM) and r, z, n (GRU); ONNX' are i, o, f, c and z, r, h."""


class GraphRecurrent(nn.Module):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` as ONNX operators; only of use while a graph is exported.

    Raises:
        UnsupportedError: the layer projects its outputs, for which ONNX has no operator.
    """

    def __init__(self, source: nn.RNNBase) -> None:
        super().__init__()
        if source.proj_size:
            raise UnsupportedError(f"an LSTM that projects its {source.hidden_size} outputs to {source.proj_size}")
        self._operator, self._gates, extra = _OPERATORS[source.mode]
        self._hidden, self._layers, self._batch_first = source.hidden_size, source.num_layers, source.batch_first
        self._suffixes = ("", "_reverse") if source.bidirectional else ("",)
        self._attributes: dict[str, Any] = {
            "hidden_size": source.hidden_size,
            "direction": "bidirectional" if source.bidirectional else "forward",
            **extra,
        }
        if "activations" in extra:
            self._attributes["activations"] = extra["activations"] * len(self._suffixes)
        for layer in range(self._layers):
            self._adopt(source, layer)

    def _adopt(self, source: nn.RNNBase, layer: int) -> None:
        """Hold one layer's weights as the operator wants them: directions stacked, gates in its order."""
        for kind in ("weight_ih", "weight_hh"):
            parts = [self._in_order(getattr(source, f"{kind}_l{layer}{suffix}")) for suffix in self._suffixes]
            self.register_buffer(f"{kind}_{layer}", torch.stack(parts))
        if source.bias:
            names = [(f"bias_ih_l{layer}{suffix}", f"bias_hh_l{layer}{suffix}") for suffix in self._suffixes]
            biases = [torch.cat([self._in_order(getattr(source, name)) for name in pair]) for pair in names]
            self.register_buffer(f"bias_{layer}", torch.stack(biases))
        else:
            self.register_buffer(f"bias_{layer}", None)

    def _in_order(self, rows: Tensor) -> Tensor:
        gates = torch.split(rows.detach(), self._hidden)
        return torch.cat([gates[place] for place in self._gates])

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """Run all layers from the zero state.

        Args:
            x: ``(batch, steps, features)`` if the layer was ``batch_first``, else steps first.
            state: must be None.
            lengths: ``(batch,) int64`` valid steps of each sample; None for all.

        Raises:
            UnsupportedError: ``x`` is a packed sequence or has no batch axis, or there is an initial state.
        """
        if isinstance(x, PackedSequence) or x.dim() != 3 or state is not None:  # noqa: PLR2004 - steps, batch, features
            raise UnsupportedError(
                f"a {self._operator} that is called with a packed sequence, an initial state or a single sample",
                "call it with (batch, steps, features) alone",
            )
        y = x.transpose(0, 1) if self._batch_first else x
        finals = []
        for layer in range(self._layers):
            y, *final = self._run(y, layer, lengths)
            finals.append(final)
        joined = tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
        return y.transpose(0, 1) if self._batch_first else y, joined if self._operator == "LSTM" else joined[0]

    def _run(self, x: Tensor, layer: int, lengths: Tensor | None) -> tuple[Tensor, ...]:
        steps, batch = x.shape[:2]
        directions = len(self._suffixes)
        final = (directions, batch, self._hidden)
        shapes = [(steps, directions, batch, self._hidden), final, *([final] if self._operator == "LSTM" else [])]
        weights = [getattr(self, f"{kind}_{layer}") for kind in ("weight_ih", "weight_hh", "bias")]
        valid = None if lengths is None else lengths.to(torch.int32)
        y, *finals = torch.onnx.ops.symbolic_multi_out(
            self._operator, (x, *weights, valid), self._attributes, dtypes=[x.dtype] * len(shapes), shapes=shapes
        )
        return y.transpose(1, 2).reshape(steps, batch, directions * self._hidden), *finals

    def flatten_parameters(self) -> None:
        """Do nothing; present because models call it on ``nn.LSTM``."""


class GraphStrokes(nn.Module):
    """``StrokeRnn`` without cutting the batch to its longest sample: masks hide what would be cut off."""

    def __init__(self, source: StrokeRnn) -> None:
        super().__init__()
        self.source = source

    def forward(self, strokes: Tensor, lengths: Tensor) -> Tensor:
        """Return ``(batch, num_classes)`` logits."""
        model, (batch, time) = self.source, strokes.shape[:2]
        steps, _state = model.stroke_lstm(torch.relu(model.stroke_embedding(strokes)), lengths=lengths)
        outside = torch.arange(time, device=strokes.device) >= lengths.max()
        mask = outside.unsqueeze(0).expand(batch, time)
        attended, _weights = model.attention(steps, steps, steps, key_padding_mask=mask, need_weights=False)
        logits: Tensor = model.classifier(attended.masked_fill(outside[:, None], float("-inf")).amax(dim=1))
        return logits


class GraphRadicals(nn.Module):
    """``RadicalRnn`` without its checks."""

    def __init__(self, source: RadicalRnn) -> None:
        super().__init__()
        self.source = source

    def forward(self, radicals: Tensor, lengths: Tensor) -> Tensor:
        """Return ``(batch, num_classes)`` logits."""
        model = self.source
        steps, _state = model.radical_lstm(model.radical_embedding(radicals), lengths=lengths)
        logits: Tensor = model.classifier(steps.sum(dim=1) / lengths.unsqueeze(1))
        return logits


_FORMS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {StrokeRnn: GraphStrokes, RadicalRnn: GraphRadicals}


def graph_form(model: nn.Module) -> nn.Module:
    """Return what to export in place of ``model``; it is changed and must not be called itself any more."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.RNNBase):
                setattr(module, name, GraphRecurrent(child))
    form = _FORMS.get(type(model))
    return model if form is None else form(model)
