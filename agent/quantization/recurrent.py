"""LSTM, GRU and RNN with packed weights.

``nn.LSTM`` keeps full copies of its weights in a private list for cuDNN, so packing its parameters shrinks the file
and not the memory. This module owns its weights packed and unpacks one layer at a time, for one call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from agent.quantization.layers import Weight, compute_dtype, dense

if TYPE_CHECKING:
    from collections.abc import Mapping

_CELLS: dict[str, Any] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
State = Tensor | tuple[Tensor, Tensor]


class PackedRecurrent(nn.Module):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` in eval mode, with the same keys, inputs and results.

    Not for ``proj_size``. Dropout between layers only acts in training, which this module has not.
    """

    def __init__(self, source: nn.RNNBase, weights: Mapping[str, Weight]) -> None:
        super().__init__()
        self.mode = source.mode
        self.hidden_size, self.num_layers = source.hidden_size, source.num_layers
        self.batch_first, self.bidirectional = source.batch_first, source.bidirectional
        self._names = source._flat_weights_names  # noqa: SLF001 - the order that torch.lstm wants, told nowhere else
        self._has_biases = source.bias
        for name, weight in weights.items():
            setattr(self, name, weight)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def forward(self, x: Tensor | PackedSequence, state: State | None = None) -> tuple[Any, State]:
        """Run all layers.

        Args:
            x: ``(batch, steps, features)`` if ``batch_first``, else steps first, or without the batch axis; or a
                packed sequence.
            state: as for ``nn.LSTM`` (a pair) or ``nn.GRU``; zeros if None.

        Returns:
            The last layer's outputs in the form of ``x``, and the final state of every layer.
        """
        if isinstance(x, PackedSequence):
            return self._run_packed(x, state)
        if x.dim() == 2:  # noqa: PLR2004 - (steps, features)
            axis = 0 if self.batch_first else 1
            y, final = self.forward(x.unsqueeze(axis), _map(state, lambda t: t.unsqueeze(1)))
            return y.squeeze(axis), _present(_map(final, lambda t: t.squeeze(1)))
        return self._run(x, None, state, x.size(0 if self.batch_first else 1))

    def _run_packed(self, x: PackedSequence, state: State | None) -> tuple[PackedSequence, State]:
        order, back = x.sorted_indices, x.unsorted_indices
        if order is not None:
            state = _map(state, lambda t: t.index_select(1, order))
        y, final = self._run(x.data, x.batch_sizes, state, int(x.batch_sizes[0]))
        if back is not None:
            final = _present(_map(final, lambda t: t.index_select(1, back)))
        return PackedSequence(y, x.batch_sizes, order, back), final

    def _run(self, x: Tensor, sizes: Tensor | None, state: State | None, batch: int) -> tuple[Tensor, State]:
        dtype = compute_dtype(x.device)
        shape = (self.num_layers * self._directions, batch, self.hidden_size)
        states = _pair(state, lambda: torch.zeros(shape, dtype=dtype, device=x.device), is_lstm=self.mode == "LSTM")
        y, finals = x.to(dtype), []
        for layer in range(self.num_layers):
            rows = slice(layer * self._directions, (layer + 1) * self._directions)
            y, *final = self._run_layer(layer, y, sizes, tuple(part[rows].to(dtype) for part in states))
            finals.append(final)
        joined = tuple(torch.cat(parts).to(x.dtype) for parts in zip(*finals, strict=True))
        return y.to(x.dtype), (joined[0], joined[1]) if self.mode == "LSTM" else joined[0]

    def _run_layer(self, layer: int, x: Tensor, sizes: Tensor | None, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        per_layer = len(self._names) // self.num_layers
        names = self._names[layer * per_layer : (layer + 1) * per_layer]
        weights = [dense(getattr(self, name), x.dtype) for name in names]
        initial = states if self.mode == "LSTM" else states[0]
        how = (self._has_biases, 1, 0.0, False, self.bidirectional)
        cell = _CELLS[self.mode]
        if sizes is not None:
            result: tuple[Tensor, ...] = cell(x, sizes, initial, weights, *how)
        else:
            result = cell(x, initial, weights, *how, self.batch_first)
        return result

    def flatten_parameters(self) -> None:
        """Do nothing: there is no flat copy. Present because models call it on ``nn.LSTM``."""


def _map(state: State | None, change: Any) -> State | None:
    if state is None:
        return None
    return (change(state[0]), change(state[1])) if isinstance(state, tuple) else change(state)


def _present(state: State | None) -> State:
    assert state is not None, "a run always ends in a state"  # noqa: S101 - for the type checker
    return state


def _pair(state: State | None, zeros: Any, *, is_lstm: bool) -> tuple[Tensor, ...]:
    if state is None:
        return (zeros(), zeros()) if is_lstm else (zeros(),)
    return state if isinstance(state, tuple) else (state,)
