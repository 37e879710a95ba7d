"""From a wish to a stream, whatever the protocol: which release answers, and whether the wish fits it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.serving.errors import BadRequestError
from agent.serving.generation.engine import Engine
from agent.serving.generation.limits import answer_tokens
from agent.serving.generation.sequence import Order
from agent.serving.generation.wishes import FieldError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.serving.dataplane import DataPlane
    from agent.serving.generation.engine import Stream
    from agent.serving.generation.model import LanguageModel
    from agent.serving.generation.wishes import Wish
    from agent.serving.slots import Slot


@dataclass(frozen=True)
class Answer:
    """An answer that has begun.

    Attributes:
        slot: the release that makes it.
        prompt_tokens: how many it read.
    """

    slot: Slot
    engine: Engine
    stream: Stream
    prompt_tokens: int


async def begin(plane: DataPlane, slot: Slot, wish: Wish, waited_s: float) -> Answer:
    """Queue a wish with the release that answers; ``waited_s`` of its time have passed.

    Raises:
        BadRequestError: the release makes no texts, or not this one.
        UnavailableError: too many wait already.
    """
    model = slot.network.text
    if model is None:
        raise BadRequestError(
            f"model {slot.model!r} of type {slot.network.model_type!r} makes no texts: {slot.network.no_text}; "
            f"ask /v2/models/{slot.model}/infer"
        )
    slot.acquire()
    try:
        # A long text takes long to take apart, and the event loop has others to answer.
        prompt = await asyncio.to_thread(_ids, model, wish)
        order = _order(model, wish, prompt)
        if slot.engine is None:
            batcher = plane.models.get(slot.model).batcher
            slot.engine = Engine(slot, model.decoder, model.limits, batcher.wake)
        stream = slot.engine.submit(order, model.speller.stream(prompt), wish.timeout_s, waited_s)
        return Answer(slot, slot.engine, stream, len(prompt))
    finally:
        slot.free()


def makes_texts(slot: Slot) -> bool:
    """Return whether a release can be asked for texts."""
    return slot.network.text is not None


def _ids(model: LanguageModel, wish: Wish) -> Sequence[int]:
    if isinstance(wish.prompt, str):
        return model.speller.encode(wish.prompt, model.limits.context_tokens)
    if isinstance(wish.prompt, list):
        return model.speller.chat(wish.prompt, model.limits.context_tokens)
    unknown = next((token for token in wish.prompt if not 0 <= token < model.vocabulary), None)
    if unknown is not None:
        raise FieldError("prompt", f"the prompt has the token {unknown}, the model has ids below {model.vocabulary}")
    return wish.prompt


def _order(model: LanguageModel, wish: Wish, prompt: Sequence[int]) -> Order:
    if not prompt:
        raise FieldError("prompt", "the prompt has no tokens: there is nothing to continue")
    tokens = answer_tokens(model.limits, len(prompt), wish.max_tokens)
    if tokens is None:
        limits = model.limits
        most = min(limits.context_tokens, limits.cache_tokens)
        reason = "the model's context has" if most == limits.context_tokens else "this device's memory holds"
        asked = "" if wish.max_tokens is None else f" and {wish.max_tokens} of the answer"
        raise FieldError(
            "max_tokens" if len(prompt) < most else "prompt",
            f"{len(prompt)} tokens of the prompt{asked} are wanted, {reason} {most}",
            "context_length_exceeded",
        )
    return Order(prompt, tokens, wish.sampling, wish.stops, model.ends)
