"""Which sequences move in a step. No thread and no lock: whoever calls it has it alone.

INVARIANTS:
- A step makes one token of every sequence whose prompt is read, and then reads at most one chunk of one prompt: no
  prompt, however long, holds up the others for longer than a chunk.
- Prompts take turns chunk by chunk.
- What a sequence may fill at most is reserved while it is here.
- Those that make a token together hold, at the length of the longest, no more than all may: a pass copies so much.
- When a joint step fails, each sequence takes it alone: only those that fail alone end with an error.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.serving.generation.limits import Limits
    from agent.serving.generation.sampling import Logits
    from agent.serving.generation.sequence import Order, TokenSequence

CHUNK_TOKENS = 128
"""Of a prompt that are read in one step."""


class Decoder(Protocol):
    """A language model with memory. One call at a time; a call that raises leaves the states as they were."""

    def begin(self, tokens: int) -> Any:
        """Return an empty state with room for so many tokens."""

    def read(self, state: Any, ids: Sequence[int]) -> Logits:
        """Append ids to a state; return the ``(vocabulary,) float32`` logits of what follows."""

    def step(self, states: Sequence[Any], ids: Sequence[int]) -> Sequence[Logits]:
        """Append one id to each state; return the logits of what follows each."""


@dataclass(frozen=True)
class Piece:
    """Text that has become certain with one more token.

    Attributes:
        reason: why nothing follows, None while something may.
    """

    text: str
    reason: str | None = None


Outcome = tuple["TokenSequence", Piece | Exception]


class Stepper:
    """The sequences of one release that have begun and not ended.

    Attributes:
        passes: forward passes so far that made tokens.
    """

    def __init__(self, decoder: Decoder, limits: Limits, chunk_tokens: int = CHUNK_TOKENS) -> None:
        self.passes = 0
        self._decoder = decoder
        self._limits = limits
        self._chunk_tokens = chunk_tokens
        self._reading: deque[TokenSequence] = deque()
        self._making: list[TokenSequence] = []

    def __len__(self) -> int:
        return len(self._reading) + len(self._making)

    @property
    def reserved_tokens(self) -> int:
        """Places for keys and values that may be filled."""
        return sum(sequence.order.reserved_tokens for sequence in (*self._reading, *self._making))

    def close(self) -> None:
        """Let go of the decoder; there are no sequences any more."""
        del self._decoder

    def has_room(self, order: Order) -> bool:
        """Return whether another sequence may begin."""
        return self._limits.admits(len(self), self.reserved_tokens, order.reserved_tokens)

    def begin(self, sequence: TokenSequence) -> None:
        """Take a sequence."""
        self._reading.append(sequence)

    def drop(self, sequence: TokenSequence) -> bool:
        """Forget a sequence and what it holds; return whether it was here."""
        sequence.state = None
        for held in (self._reading, self._making):
            if sequence in held:
                held.remove(sequence)
                return True
        return False

    def step(self) -> list[Outcome]:
        """Move on; return what came of it, of each sequence at most once. Sequences that ended are forgotten."""
        outcomes = [outcome for group in self._groups() for outcome in self._make(group)]
        outcomes += self._read()
        for sequence, outcome in outcomes:
            if isinstance(outcome, Exception) or outcome.reason is not None:
                self.drop(sequence)
        return outcomes

    def _groups(self) -> Iterator[list[TokenSequence]]:
        """Yield those that take a step together, the longest first."""
        left = sorted(self._making, key=lambda sequence: sequence.length, reverse=True)
        while left:
            most = max(1, self._limits.cache_tokens // left[0].length)
            yield left[:most]
            left = left[most:]

    def _make(self, sequences: list[TokenSequence]) -> Iterator[Outcome]:
        if not sequences:
            return
        try:
            rows = self._decoder.step([each.state for each in sequences], [each.last for each in sequences])
        except Exception as error:  # noqa: BLE001 - whatever a model raises must not end the thread
            if len(sequences) == 1:
                yield sequences[0], error
                return
            for each in sequences:
                yield from self._make([each])
            return
        self.passes += 1
        for each, logits in zip(sequences, rows, strict=True):
            yield each, _advance(each, logits)

    def _read(self) -> Iterator[Outcome]:
        if not self._reading:
            return
        sequence = self._reading.popleft()
        self._reading.append(sequence)
        ids = sequence.chunk(self._chunk_tokens)
        try:
            if sequence.state is None:
                sequence.state = self._decoder.begin(sequence.order.reserved_tokens)
            logits = self._decoder.read(sequence.state, ids)
        except Exception as error:  # noqa: BLE001 - as above
            yield sequence, error
            return
        sequence.read += len(ids)
        if sequence.is_reading:
            return
        self.passes += 1
        self._reading.remove(sequence)
        self._making.append(sequence)
        yield sequence, _advance(sequence, logits)


def _advance(sequence: TokenSequence, logits: Logits) -> Piece | Exception:
    try:
        text = sequence.advance(logits)
    except Exception as error:  # noqa: BLE001 - as above: a tokenizer is the checkpoint's, too
        return error
    return Piece(text, sequence.reason)
