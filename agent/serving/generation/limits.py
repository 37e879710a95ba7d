"""How much is generated at once: the memory of keys and values, and who is let in. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SEQUENCES = 8
"""Sequences that are generated at once. Each adds to the time of a step; a small device's user waits for the sum."""
MAX_WAITING = 64
QUEUE_S = 30.0
"""Seconds that a request waits for its first step at most."""
SHARE_OF_AVAILABLE = 4
"""Of the memory that is available after a load, one part in so many may hold keys and values."""
DEFAULT_CONTEXT = 2048
"""Context of a model whose configuration names none (ALiBi, for one)."""
CHAT_TOKENS = 1024
"""What a chat's answer has at most unless the request says: the room in the context is reserved for it."""


def cached_token_bytes(*, layers: int, kv_heads: int, head_width: int, element_bytes: int) -> int:
    """Return the bytes that one token's keys and values take: ``layers x 2 x heads x width x element``."""
    return layers * 2 * kv_heads * head_width * element_bytes


@dataclass(frozen=True)
class Limits:
    """What one release may take.

    Attributes:
        context_tokens: prompt and answer together have at most so many tokens.
        cache_tokens: all sequences together have at most so many tokens of keys and values.
        max_sequences, max_waiting: how many are generated at once, and how many wait.
    """

    context_tokens: int
    cache_tokens: int
    max_sequences: int = MAX_SEQUENCES
    max_waiting: int = MAX_WAITING

    def admits(self, running: int, reserved_tokens: int, wanted_tokens: int) -> bool:
        """Return whether a sequence of up to ``wanted_tokens`` may begin beside what runs.

        Its whole length is reserved, so that what has begun is never stopped for want of memory.
        """
        return running < self.max_sequences and reserved_tokens + wanted_tokens <= self.cache_tokens


def limits_of(context_tokens: int, token_bytes: int, available_bytes: int) -> Limits:
    """Return the limits that the available memory, in bytes, allows: as many full contexts as run at once, or fewer."""
    affordable = available_bytes // SHARE_OF_AVAILABLE // token_bytes
    return Limits(context_tokens, max(1, min(MAX_SEQUENCES * context_tokens, affordable)))


def answer_tokens(limits: Limits, prompt_tokens: int, wanted: int | None) -> int | None:
    """Return how many tokens an answer may have, None where a context or the memory has no room for that.

    Without a wish it is what the context leaves, up to ``CHAT_TOKENS`` and to what the memory holds.
    """
    room = min(limits.context_tokens, limits.cache_tokens) - prompt_tokens
    if wanted is None:
        wanted = min(CHAT_TOKENS, room)
    return wanted if 0 < wanted <= room else None
