"""The routes that make texts: ``generate`` and ``generate_stream`` of a model, and OpenAI's under ``/v1``."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from agent.serving.body import DisconnectedError
from agent.serving.disconnect import DisconnectWatch
from agent.serving.errors import NotFoundError, ServingError
from agent.serving.generation import openai, service, triton
from agent.serving.generation.events import EventReply
from agent.serving.replies import Reply, error_reply, json_reply
from agent.serving.slots import answering

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.serving.body import Receive
    from agent.serving.dataplane import DataPlane
    from agent.serving.generation.events import Form
    from agent.serving.generation.service import Answer
    from agent.serving.generation.wishes import Wish
    from agent.serving.slots import Slot

STREAM = "generate_stream"
GENERATE = ("generate", STREAM)


class Request(Protocol):
    """What the server's application knows of a request."""

    @property
    def receive(self) -> Receive:
        """Of ASGI."""

    def expect(self, method: str) -> None:
        """Raise ``MethodNotAllowedError`` for another verb."""

    def unknown(self) -> NotFoundError:
        """Return the error for a path that matches nothing."""


class TextRoutes:
    """Answers requests for texts.

    Args:
        plane: the models.
        read: returns a request's body.
    """

    def __init__(self, plane: DataPlane, read: Callable[[Any], Awaitable[bytes]]) -> None:
        self._plane = plane
        self._read = read
        self._created = int(time.time())

    async def generate(self, request: Request, name: str, version: str | None, action: str) -> Reply | EventReply:
        """Answer ``/v2/models/<name>/<action>``."""
        request.expect("POST")
        self._plane.expect(name, version)
        body = await self._read(request)
        wish, request_id = triton.parse(body, is_stream=action == STREAM)

        def form(answer: Answer) -> Form:
            return triton.Form(answer.slot, request_id)

        return await self._answer(request, (name, version), wish, len(body), form)

    async def openai(self, request: Request, rest: list[str]) -> Reply | EventReply:
        """Answer ``/v1/<rest>``."""
        match rest:
            case ["models"]:
                request.expect("GET")
                entries = [openai.model_entry(slot, self._created) for slot in self._language_models()]
                return json_reply({"object": "list", "data": entries})
            case ["models", name]:
                request.expect("GET")
                found = next((slot for slot in self._language_models() if slot.model == name), None)
                if found is None:
                    raise self._unknown_model(name)
                return json_reply(openai.model_entry(found, self._created))
            case ["completions"] | ["chat", "completions"]:
                request.expect("POST")
                return await self._complete(request, is_chat=rest[0] == "chat")
        raise request.unknown()

    async def _complete(self, request: Request, *, is_chat: bool) -> Reply | EventReply:
        body = await self._read(request)
        ask = openai.parse(body, is_chat=is_chat)
        if self._plane.models.find(ask.model) is None:
            raise self._unknown_model(ask.model)

        def form(answer: Answer) -> Form:
            return openai.Form(ask, answer.slot, answer.prompt_tokens, int(time.time()))

        return await self._answer(request, (ask.model, None), ask.wish, len(body), form)

    async def _answer(
        self,
        request: Request,
        named: tuple[str, str | None],
        wish: Wish,
        size: int,
        form_of: Callable[[Answer], Form],
    ) -> Reply | EventReply:
        began = time.perf_counter()
        watch, answer, slot, reply = DisconnectWatch(request.receive), None, None, None
        try:
            slot = self._plane.models.answering(*named) or await self._plane.await_slot(*named, size, wish.timeout_s)
            answer = await service.begin(self._plane, slot, wish, time.perf_counter() - began)
            piece, form = await answer.stream.next(), form_of(answer)
            if wish.is_stream:
                reply = EventReply(answer, piece, form, watch, lambda outcome: _count(answer.slot, outcome, began))
                return reply
            text = piece.text
            while piece.reason is None:
                piece = await answer.stream.next()
                text += piece.text
            _count(slot, "ok", began)
            return Reply(200, form.whole(text, piece.reason, answer.stream.tokens))
        except ServingError as error:
            if slot is not None:
                _count(slot, error.outcome, began)
            raise
        except asyncio.CancelledError:
            if not watch.has_left:
                raise
            if slot is not None:
                _count(slot, "canceled", began)
            raise DisconnectedError from None
        finally:
            if reply is None:
                watch.close()
                if answer is not None:
                    answer.engine.drop(answer.stream)

    def _language_models(self) -> list[Slot]:
        return [slot for slot in self._plane.models.all_active() if service.makes_texts(slot)]

    def _unknown_model(self, name: str) -> NotFoundError:
        known = answering(slot.model for slot in self._language_models())
        return openai.UnknownModelError(f"there is no model {name[:128]!r} that makes texts; {known}")


def openai_error_reply(error: ServingError) -> Reply:
    """Return a refusal under ``/v1``."""
    return replace(error_reply(error), body=openai.failure(error))


def _count(slot: Slot, outcome: str, began: float) -> None:
    if outcome == "ok":
        slot.stats.told(time.time_ns() // 1_000_000)
    else:
        slot.stats.refused(outcome, time.perf_counter() - began)
