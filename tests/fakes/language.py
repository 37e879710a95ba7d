"""A language model that counts through the alphabet, and a client that reads as it comes. No torch, no sleep."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.serving.errors import BadRequestError
from agent.serving.generation.limits import Limits
from agent.serving.generation.model import LanguageModel
from tests.fakes.serving import FakeNetwork, Harness, harness, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from agent.serving.generation.sampling import Logits
    from agent.serving.generation.wishes import Messages

VOCABULARY = 128
END = 0
POISON = ord("#")
"""A state that holds it cannot be continued."""
INFINITE = ord("%")
"""A state that ends with it is answered with NaN."""


@dataclass
class FakeState:
    """What has been read; no more than ``room``."""

    room: int
    ids: list[int] = field(default_factory=list)


@dataclass
class FakeDecoder:
    """Continues ``x`` with ``y``, ``z`` with ``a``, and ``!`` with the end.

    ``calls`` says what was computed, in order: ``read`` with the number of ids, ``step`` with the texts' last ids.
    After ``hold`` every call waits for a ``permit``; ``entered`` counts those that came so far.
    """

    calls: list[tuple[str, Any]] = field(default_factory=list)
    error: Exception = field(default_factory=lambda: RuntimeError("poisoned"))
    entered: int = 0
    _permits: threading.Semaphore | None = None

    def hold(self) -> None:
        self._permits = threading.Semaphore(0)

    def permit(self, calls: int = 1) -> None:
        assert self._permits is not None, "it is not held"
        self._permits.release(calls)

    def begin(self, tokens: int) -> FakeState:
        return FakeState(tokens)

    def read(self, state: FakeState, ids: Sequence[int]) -> Logits:
        self._enter(("read", len(ids)))
        return self._append([state], [ids])[0]

    def step(self, states: Sequence[FakeState], ids: Sequence[int]) -> Sequence[Logits]:
        self._enter(("step", "".join(map(chr, ids))))
        return self._append(states, [[each] for each in ids])

    def _enter(self, call: tuple[str, Any]) -> None:
        self.calls.append(call)
        self.entered += 1
        if self._permits is not None:
            self._permits.acquire()

    def _append(self, states: Sequence[FakeState], ids: Sequence[Sequence[int]]) -> list[Logits]:
        for state, new in zip(states, ids, strict=True):
            assert len(state.ids) + len(new) <= state.room, "more was written than was reserved"
            if POISON in new or POISON in state.ids:
                raise self.error
        for state, new in zip(states, ids, strict=True):
            state.ids.extend(new)
        return [_logits(state.ids[-1]) for state in states]


def _logits(last: int) -> Logits:
    letter = chr(last)
    following = END if letter == "!" else ord(chr(last + 1) if "a" <= letter < "z" else "a")
    logits = np.zeros(VOCABULARY, np.float32)
    logits[following] = np.nan if last == INFINITE else 9.0
    return logits


class FakeText:
    def push(self, token: int) -> str:
        return chr(token)


class FakeSpeller:
    """An id a character."""

    def encode(self, text: str, context_tokens: int) -> list[int]:
        if len(text) > 10 * context_tokens:
            raise BadRequestError("too long")
        return list(map(ord, text))

    def chat(self, messages: Messages, context_tokens: int) -> list[int]:
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return self.encode(text, context_tokens)

    def stream(self, _prompt: Sequence[int]) -> FakeText:
        return FakeText()


def language_model(decoder: FakeDecoder | None = None, **limits: int) -> LanguageModel:
    """Return a model with small limits."""
    granted = {"context_tokens": 64, "cache_tokens": 512, **limits}
    return LanguageModel(FakeSpeller(), decoder or FakeDecoder(), Limits(**granted), VOCABULARY, frozenset({END}), 8)


@dataclass
class Call:
    """One request whose answer is read while it comes.

    Attributes:
        status: of the reply, None before it begins.
    """

    app: Any
    path: str
    body: dict[str, Any]
    status: int | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)
    _sent: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    _left: asyncio.Event = field(default_factory=asyncio.Event)
    _is_read: bool = False
    _has_ended: bool = False
    task: asyncio.Future[None] | None = None

    def start(self) -> Call:
        scope = {"type": "http", "method": "POST", "path": self.path, "raw_path": self.path.encode(), "headers": []}
        self.task = asyncio.ensure_future(self.app(scope, self._receive, self._sent.put))
        return self

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()

    async def event(self) -> Any:
        """Return the next event's JSON, the text of one that is none, or None at the end."""
        while not self._has_ended:
            message = await self._sent.get()
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], dict(message["headers"])
                continue
            self._has_ended = not message["more_body"]
            if message["body"]:
                text = message["body"].removeprefix(b"data: ").decode()
                return text.strip() if text.startswith("[") else json.loads(text)
        return None

    async def events(self) -> list[Any]:
        """Return all that are left."""
        found = []
        while (event := await self.event()) is not None:
            found.append(event)
        return found

    async def _receive(self) -> dict[str, Any]:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": json.dumps(self.body).encode(), "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}


@dataclass
class Writer:
    """A server whose model ``m`` writes."""

    it: Harness
    decoder: FakeDecoder

    def stream(self, text: str, *, app: Any = None, **parameters: Any) -> Call:
        body = {"text_input": text, "parameters": {"temperature": 0, "max_tokens": 8, **parameters}}
        return Call(app or self.it.app, "/v2/models/m/generate_stream", body).start()

    async def held(self, *texts: str, **parameters: Any) -> list[Call]:
        """Start streams and hold the model in its first call, with the others queued behind it in order."""
        self.decoder.hold()
        calls = [self.stream(texts[0], **parameters)]
        await until(lambda: self.decoder.entered == 1)
        for count, text in enumerate(texts[1:], 1):
            calls.append(self.stream(text, **parameters))
            await until(lambda: self.waiting == count)  # noqa: B023 - it is awaited here
        return calls

    @property
    def waiting(self) -> int:
        """How many texts wait for their first step."""
        active = self.it.plane.models.active("m")
        return 0 if active.engine is None else len(active.engine._waiting)

    async def text(self, text: str, **parameters: Any) -> str:
        body = {"text_input": text, "parameters": {"temperature": 0, "max_tokens": 8, **parameters}}
        reply = await self.it.data.post("/v2/models/m/generate", json=body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["text_output"])

    async def metric(self, name: str) -> float:
        lines = (await self.it.data.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


@asynccontextmanager
async def writer(**limits: int) -> AsyncIterator[Writer]:
    """Yield a server with a model that writes; whatever it holds is let go with the block."""
    decoder = FakeDecoder()
    async with harness() as it:
        await it.serve("m", FakeNetwork(text=language_model(decoder, **limits)))
        try:
            yield Writer(it, decoder)
        finally:
            if decoder._permits is not None:
                decoder.permit(10_000)
