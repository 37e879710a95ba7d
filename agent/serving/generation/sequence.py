"""One text in the making: what has been read and made of it, and whether it has ended. No thread, no clock, no torch.

INVARIANTS:
- A prompt is read once, in chunks; after its last chunk each step makes one token.
- Text is shown only once it is certain: no part of a character, and nothing that may be the beginning of a stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agent.serving.errors import ModelFailedError
from agent.serving.generation.sampling import Sampler, Sampling
from agent.serving.generation.stops import StopFinder

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from agent.serving.generation.sampling import Logits


class TextStream(Protocol):
    """Turns tokens into text, one after the other."""

    def push(self, token: int) -> str:
        """Return the text that is certain with this token; it may be empty."""


@dataclass(frozen=True)
class Order:
    """What shall be made.

    Attributes:
        prompt: ids, at least one.
        max_tokens: how many to make at most.
        ends: ids that end the text without being part of it.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    stops: Sequence[str]
    ends: Collection[int]

    @property
    def reserved_tokens(self) -> int:
        """Places for keys and values that it may fill."""
        return len(self.prompt) + self.max_tokens


class TokenSequence:
    """A sequence of tokens on its way to ``order.max_tokens``.

    Attributes:
        state: the decoder's keys and values, None before the first step.
        read: how much of the prompt has been computed.
        made: tokens so far, the one that ended the text included.
        last: the token that the next step continues from.
        reason: why it ended, ``stop`` or ``length``; None before.
    """

    def __init__(self, order: Order, text: TextStream) -> None:
        self.order = order
        self.state: Any = None
        self.read = 0
        self.made = 0
        self.last = 0
        self.reason: str | None = None
        self._sampler = Sampler(order.sampling)
        self._text = text
        self._stops = StopFinder(order.stops)

    @property
    def is_reading(self) -> bool:
        """Whether there is prompt left to read."""
        return self.read < len(self.order.prompt)

    @property
    def length(self) -> int:
        """Tokens of prompt and text so far."""
        return self.read + self.made

    def chunk(self, size: int) -> Sequence[int]:
        """Return the next ids of the prompt, at most ``size``."""
        return self.order.prompt[self.read : self.read + size]

    def advance(self, logits: Logits) -> str:
        """Choose the next token by its ``(vocabulary,)`` logits and return the text that is certain now.

        Raises:
            ModelFailedError: the logits are not finite.
        """
        if not np.isfinite(logits).all():
            raise ModelFailedError("the model answered with NaN or infinity")
        self.last = self._sampler.choose(logits)
        self.made += 1
        if self.last in self.order.ends:
            self.reason = "stop"
            return self._stops.flush()
        shown = self._stops.feed(self._text.push(self.last))
        if self._stops.is_found:
            self.reason = "stop"
        elif self.made >= self.order.max_tokens:
            self.reason = "length"
            shown += self._stops.flush()
        return shown
