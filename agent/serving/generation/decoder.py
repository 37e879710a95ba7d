"""A causal language model of ``transformers`` with keys and values of its own. Imports torch.

Rules:
- Each sequence has its own buffers, of the size that was reserved for it; sequences join and part without a copy.
- Several sequences of one token each are one forward pass: shorter ones are padded on the left and masked. That costs a
  copy of one layer's keys and values at a time, and saves unpacking every weight once more.
- A pass that raises leaves every sequence as long as it was.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import cache_utils

from agent.planning.texts import cached_token_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.serving.generation.sampling import Logits

CHECK_TOLERANCE = 0.1
"""Of a check, relative. A model with another memory is off by its whole answer; kernels for one row or many, in half
precision, by a hundredth."""


class CachedDecoder:
    """Reads and continues sequences.

    Args:
        network: the library's model.
        device: where it is.
    """

    def __init__(self, network: Any, device: torch.device) -> None:
        self._network = network
        self._device = device
        self._layers = int(network.config.get_text_config().num_hidden_layers)
        taken = inspect.signature(network.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._extra = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}

    def begin(self, tokens: int) -> Row:
        """Return an empty sequence with room for so many tokens; its memory is taken with the first of them."""
        return Row(tokens)

    def read(self, state: Row, ids: Sequence[int]) -> Logits:
        """Append ids; return the ``(vocabulary,) float32`` logits of what follows."""
        return self._forward([state], [ids])[0]

    def step(self, states: Sequence[Row], ids: Sequence[int]) -> Sequence[Logits]:
        """Append one id to each; return the logits of what follows each."""
        return self._forward(states, [[each] for each in ids])

    def _forward(self, rows: Sequence[Row], ids: Sequence[Sequence[int]]) -> Sequence[Logits]:
        count, longest = len(ids[0]), max(row.length for row in rows)
        cache = cache_utils.Cache(layers=[_RowsLayer(rows, index) for index in range(self._layers)])
        given: dict[str, Any] = dict(self._extra)
        if self._takes_positions:
            given["position_ids"] = self._tensor([range(row.length, row.length + count) for row in rows])
        if any(row.length != longest for row in rows):
            width = longest + count
            mask = [[int(at >= longest - row.length) for at in range(width)] for row in rows]
            given["attention_mask"] = self._tensor(mask)
        with torch.inference_mode():
            answer = self._network(input_ids=self._tensor(ids), past_key_values=cache, use_cache=True, **given)
            logits = answer.logits[:, -1].float().cpu().numpy()
        for row in rows:
            row.length += count
        return list(logits)

    def _tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(np.asarray(rows, dtype=np.int64), device=self._device)

    def token_bytes(self, row: Row) -> int:
        """Return the bytes of one token's keys and values, told by the buffers of a sequence that has been read.

        Where all layers are alike this is ``planning.texts.cached_token_bytes``.
        """
        return sum(
            cached_token_bytes(layers=1, kv_heads=heads, head_width=width, element_bytes=size) // 2
            for heads, width, size in row.widths()
        )

    def check(self, vocabulary: int) -> int:
        """Compare texts that are continued step by step with the same texts read at once.

        Returns:
            The bytes of one token's keys and values.

        Raises:
            ValueError: they differ: the model remembers in another way than by keys and values.
        """
        texts = [[(7 * at + 3) % vocabulary for at in range(length)] for length in (6, 4)]
        rows = [self.begin(len(text)) for text in texts]
        self.read(rows[0], texts[0][:3])
        for row, text in zip(rows, texts, strict=True):
            self.read(row, text[row.length : -1])
        stepped = self.step(rows, [text[-1] for text in texts])
        for text, logits in zip(texts, stepped, strict=True):
            with torch.inference_mode():
                whole = self._network(input_ids=self._tensor([text]), use_cache=False).logits[0, -1]
            wanted = whole.float().cpu().numpy()
            off = float(np.linalg.norm(logits - wanted) / max(1e-6, float(np.linalg.norm(wanted - wanted.mean()))))
            if not off <= CHECK_TOLERANCE:
                raise ValueError(f"continued token by token it answers otherwise than at once, by {off:.3f}")
        return self.token_bytes(rows[0])


class Row:
    """Keys and values of one sequence.

    Attributes:
        length: tokens that are held.
    """

    def __init__(self, capacity: int) -> None:
        self.length = 0
        self._capacity = capacity
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write ``(heads, count, width)`` behind what is held; it counts once ``length`` is raised."""
        if layer not in self._held:
            self._held[layer] = self._room(keys), self._room(values)
        for buffer, new in zip(self._held[layer], (keys, values), strict=True):
            buffer[:, self.length : self.length + new.shape[1]] = new

    def get(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Return the first ``length`` of what was written, each ``(heads, length, width)``."""
        keys, values = self._held[layer]
        return keys[:, :length], values[:, :length]

    def widths(self) -> list[tuple[int, int, int]]:
        """Return heads, width and bytes of an element of every buffer."""
        buffers = [buffer for pair in self._held.values() for buffer in pair]
        return [(buffer.shape[0], buffer.shape[2], buffer.element_size()) for buffer in buffers]

    def _room(self, like: Tensor) -> Tensor:
        return like.new_empty((like.shape[0], self._capacity, like.shape[2]))


class _RowsLayer(cache_utils.DynamicLayer):  # type: ignore[no-untyped-call]  # the library's gap
    """One layer of a batch of sequences, as the library's attention asks for it."""

    def __init__(self, rows: Sequence[Row], index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.is_initialized = True
        self._rows = rows
        self._index = index
        self._longest = max(row.length for row in rows)

    def get_seq_length(self) -> int:
        """Return how long the longest sequence is."""
        return self._longest

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep ``(batch, heads, count, width)`` and return all that is held, padded on the left."""
        count = key_states.shape[2]
        for row, keys, values in zip(self._rows, key_states, value_states, strict=True):
            row.put(self._index, keys, values)
        if len(self._rows) == 1:
            keys, values = self._rows[0].get(self._index, self._longest + count)
            return keys.unsqueeze(0), values.unsqueeze(0)
        return self._joined(key_states, count, 0), self._joined(value_states, count, 1)

    def _joined(self, like: Tensor, count: int, which: int) -> Tensor:
        width = self._longest + count
        joined = like.new_zeros((like.shape[0], like.shape[1], width, like.shape[3]))
        for row, place in zip(self._rows, joined, strict=True):
            length = row.length + count
            place[:, width - length :] = row.get(self._index, length)[which]
        return joined
