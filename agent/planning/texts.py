"""Keys and values: the memory in which a language model keeps the texts that it is making. Pure arithmetic.

A token takes ``2 x layers x kv_heads x head_width x bytes``, a key and a value in every layer: Kwon et al., "Efficient
Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023, section 3, which counts 800 KB for
OPT-13B. Where several heads of queries share one of keys, ``kv_heads`` is the smaller number (Ainslie et al., "GQA",
EMNLP 2023). On top comes what a pass copies of one layer at a time: texts of different lengths are joined, and shared
heads are repeated for every head of queries.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SEQUENCES = 8
"""Texts that are made at once. Each adds to the time of a step; a small device's user waits for the sum."""
LEAST_TOKENS = 1024
"""What prompts and answers may hold together at least, or the whole context if that is shorter: less is no use."""
SHARE = 4
"""Of the memory that a model leaves free, one part in so many may hold keys and values."""


def cached_token_bytes(*, layers: int, kv_heads: int, head_width: int, element_bytes: int) -> int:
    """Return the bytes that one token's keys and values take: ``layers x 2 x heads x width x element``."""
    return layers * 2 * kv_heads * head_width * element_bytes


@dataclass(frozen=True)
class TextCache:
    """How a language model remembers.

    Attributes:
        layers, heads, kv_heads, head_width: of its attention.
        context_tokens: prompt and answer together have at most so many.
        element_bytes: of a key's or value's element; activations are float32 on every device.
    """

    layers: int
    heads: int
    kv_heads: int
    head_width: int
    context_tokens: int
    element_bytes: int = 4

    @property
    def token_bytes(self) -> int:
        """What stays of one token."""
        return self._bytes(self.layers, self.kv_heads)

    @property
    def copied_bytes(self) -> int:
        """What a pass copies of one token: one layer at a time, joined, and repeated for all heads of queries."""
        return self._bytes(1, self.kv_heads + self.heads)

    @property
    def least_bytes(self) -> int:
        """What the shortest cache that is of use takes."""
        return self._least_tokens * (self.token_bytes + self.copied_bytes)

    def room(self, spare_bytes: int) -> TextRoom:
        """Return the cache for a model that leaves ``spare_bytes`` free: its share of them, or the least of use."""
        return self.room_of(max(self.least_bytes, spare_bytes // SHARE))

    def room_of(self, given_bytes: int, token_bytes: int | None = None) -> TextRoom:
        """Return what fits into ``given_bytes``, up to as many full contexts as texts may run at once.

        Args:
            given_bytes: for keys, values and the copies of a pass.
            token_bytes: what stays of one token, where that was measured.
        """
        each = (self.token_bytes if token_bytes is None else token_bytes) + self.copied_bytes
        tokens = max(1, min(MAX_SEQUENCES * self.context_tokens, given_bytes // each))
        return TextRoom(tokens, max(1, min(MAX_SEQUENCES, tokens // self._least_tokens)), tokens * each)

    def to_json(self) -> dict[str, int]:
        """Return what ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any] | None) -> TextCache | None:
        """Read what ``to_json`` wrote; None where a model makes no texts."""
        return None if body is None else cls(**body)

    @property
    def _least_tokens(self) -> int:
        return min(self.context_tokens, LEAST_TOKENS)

    def _bytes(self, layers: int, heads: int) -> int:
        return cached_token_bytes(
            layers=layers, kv_heads=heads, head_width=self.head_width, element_bytes=self.element_bytes
        )


@dataclass(frozen=True)
class TextRoom:
    """A cache.

    Attributes:
        tokens: what all texts together may hold.
        sequences: texts that are made at once.
        bytes: what that takes.
    """

    tokens: int
    sequences: int
    bytes: int

    def to_json(self) -> dict[str, int]:
        """Return the figures for records and reports."""
        return asdict(self)
