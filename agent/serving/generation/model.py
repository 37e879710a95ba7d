"""What a network that makes texts consists of. No torch: ``language`` makes it of an artifact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.serving.generation.limits import Limits
    from agent.serving.generation.sequence import TextStream
    from agent.serving.generation.stepper import Decoder
    from agent.serving.generation.wishes import Messages


class Speller(Protocol):
    """Text to ids and back. Called from any thread."""

    def encode(self, text: str, context_tokens: int) -> Sequence[int]:
        """Return a text's ids; raises ``BadRequestError``."""

    def chat(self, messages: Messages, context_tokens: int) -> Sequence[int]:
        """Return a conversation's ids up to where the answer begins; raises ``BadRequestError``."""

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """Return what turns the tokens behind ``prompt`` into text."""


@dataclass(frozen=True)
class LanguageModel:
    """A network that makes texts.

    Attributes:
        vocabulary: ids are below it.
        ends: ids that end a text.
        token_bytes: what the keys and values of one token take.
    """

    speller: Speller
    decoder: Decoder
    limits: Limits
    vocabulary: int
    ends: frozenset[int]
    token_bytes: int

    def told(self) -> dict[str, int]:
        """Return what may be written at once, for logs and reports."""
        limits = self.limits
        return {
            "token_bytes": self.token_bytes,
            "context_tokens": limits.context_tokens,
            "tokens": limits.cache_tokens,
            "sequences": limits.max_sequences,
            "bytes": limits.cache_bytes,
        }
