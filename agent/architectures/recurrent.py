"""LSTM and GRU children: built from options, read back from shapes.

Gate order, layer suffixes and directions are PyTorch's (``torch.nn.LSTM``, ``torch.nn.GRU``), batch first, zero
initial state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from agent.architectures.errors import UnrecognisedCheckpointError

if TYPE_CHECKING:
    from agent.architectures.model_type import Shapes

_CELLS: dict[str, type[nn.LSTM | nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
_GATES = {4: "lstm", 3: "gru"}
"""Cell by the rows of its input weights over its hidden size."""

_DROPOUT = 0.3


@dataclass(frozen=True)
class Recurrence:
    """The sizes of one recurrent child.

    Attributes:
        input_size: features of a step.
        hidden_size: H.
        num_layers: stacked layers.
        bidirectional: whether each layer also reads backwards, which doubles its output.
        cell: ``lstm`` or ``gru`` in any case.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool = True
    cell: str = "lstm"

    @property
    def output_size(self) -> int:
        """Features of an output step: H, or 2H when bidirectional."""
        return self.hidden_size * (2 if self.bidirectional else 1)

    def build(self) -> nn.LSTM | nn.GRU:
        """Return the module.

        Raises:
            ValueError: the cell is neither LSTM nor GRU.
        """
        cell = _CELLS.get(self.cell.lower())
        if cell is None:
            raise ValueError(f"unknown recurrent cell {self.cell!r}; known: {', '.join(_CELLS)}")
        return cell(
            self.input_size,
            self.hidden_size,
            num_layers=self.num_layers,
            batch_first=True,
            bidirectional=self.bidirectional,
            # torch warns about dropout between the layers of a single-layer module.
            dropout=_DROPOUT if self.num_layers > 1 else 0.0,
        )


def read_recurrence(shapes: Shapes, child: str) -> Recurrence:
    """Return the sizes of the recurrent child of that name.

    Raises:
        UnrecognisedCheckpointError: its weights have the gates of neither an LSTM nor a GRU.
    """
    rows, hidden = shapes.size(f"{child}.weight_hh_l0"), shapes.size(f"{child}.weight_hh_l0", axis=1)
    cell = _GATES.get(rows // hidden) if rows % hidden == 0 else None
    if cell is None:
        raise UnrecognisedCheckpointError(
            f"tensor '{child}.weight_hh_l0' has {rows} rows for hidden size {hidden}: "
            "an LSTM has 4, a GRU 3 times as many"
        )
    return Recurrence(
        input_size=shapes.size(f"{child}.weight_ih_l0", axis=1),
        hidden_size=hidden,
        num_layers=shapes.count(f"{child}.weight_ih_l{{}}"),
        bidirectional=f"{child}.weight_ih_l0_reverse" in shapes,
        cell=cell,
    )


def run_padded(rnn: nn.Module, steps: Tensor, lengths: Tensor) -> Tensor:
    """Return a recurrent child's outputs over each sample's own length, zero after it.

    The reverse direction starts at each sample's last valid step.

    Args:
        rnn: the child.
        steps: ``(batch, time, features)``; what lies past a sample's length has no effect.
        lengths: ``(batch,)`` int64, in any order.

    Returns:
        ``(batch, max(lengths), output_size)``.

    Raises:
        ValueError: a length is not within 1..time, or there is not one for each sample.
    """
    batch, time = steps.shape[:2]
    if lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {list(lengths.shape)} for a batch of {batch}: one length per sample")
    on_cpu = lengths.to("cpu", torch.int64)  # packing walks the lengths on the host
    shortest, longest = int(on_cpu.min()), int(on_cpu.max())
    if shortest < 1 or longest > time:
        raise ValueError(f"lengths are within {shortest}..{longest}, the input holds 1..{time} steps")
    packed = pack_padded_sequence(steps, on_cpu, batch_first=True, enforce_sorted=False)
    outputs, _state = rnn(packed)
    padded: Tensor = pad_packed_sequence(outputs, batch_first=True)[0]
    return padded
