"""How many texts are made at once, and how long they may be: who is let in. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.planning.texts import MAX_SEQUENCES, SHARE

if TYPE_CHECKING:
    from agent.planning.texts import TextCache

MAX_WAITING = 64
QUEUE_S = 30.0
"""Seconds that a request waits for its first step at most."""
CHAT_TOKENS = 1024
"""What a chat's answer has at most unless the request says: the room in the context is reserved for it."""


@dataclass(frozen=True)
class Limits:
    """What one release may take.

    Attributes:
        context_tokens: prompt and answer together have at most so many tokens.
        cache_tokens: all sequences together have at most so many tokens of keys and values.
        cache_bytes: what those take, with what a pass copies of them.
        max_sequences, max_waiting: how many are generated at once, and how many wait.
    """

    context_tokens: int
    cache_tokens: int
    cache_bytes: int = 0
    max_sequences: int = MAX_SEQUENCES
    max_waiting: int = MAX_WAITING

    def admits(self, running: int, reserved_tokens: int, wanted_tokens: int) -> bool:
        """Return whether a sequence of up to ``wanted_tokens`` may begin beside what runs.

        Its whole length is reserved, so that what has begun is never stopped for want of memory.
        """
        return running < self.max_sequences and reserved_tokens + wanted_tokens <= self.cache_tokens


def limits_of(cache: TextCache, token_bytes: int, available_bytes: int, planned_bytes: int | None = None) -> Limits:
    """Return the limits that the memory allows.

    Args:
        cache: how the model remembers.
        token_bytes: what one token was measured to take.
        available_bytes: what is free now.
        planned_bytes: what the supervisor has planned for it, None where nobody did: then a share of what is free.
    """
    given = available_bytes // SHARE if planned_bytes is None else min(planned_bytes, available_bytes)
    room = cache.room_of(given, token_bytes)
    return Limits(cache.context_tokens, room.tokens, room.bytes, room.sequences)


def answer_tokens(limits: Limits, prompt_tokens: int, wanted: int | None) -> int | None:
    """Return how many tokens an answer may have, None where a context or the memory has no room for that.

    Without a wish it is what the context leaves, up to ``CHAT_TOKENS`` and to what the memory holds.
    """
    room = min(limits.context_tokens, limits.cache_tokens) - prompt_tokens
    if wanted is None:
        wanted = min(CHAT_TOKENS, room)
    return wanted if 0 < wanted <= room else None
