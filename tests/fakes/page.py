"""A page's port with made-up facts behind it, and a client that sends what it likes."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from typing import TYPE_CHECKING, Any

from agent.contract.reports import Report
from agent.contract.topics import Topics
from agent.contract.wire import dump
from agent.health.board import Board
from agent.health.sections import sections
from agent.health.web import StatusSite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.health.handler import Offer

JsonObject = dict[str, Any]
TOPICS = Topics("edge/v1", "box")
WAIT_S = 20.0


def status(**changes: Any) -> JsonObject:
    """Return a body of ``status.json``."""
    return {
        "device_id": "box",
        "agent": "0",
        "broker": "127.0.0.1:1883",
        "connection": {"connected": True, "echo": True},
        "inference": "http://127.0.0.1:8000/v2",
        "health": {"status": "ok", "reasons": []},
        "models": {},
        "operations": [],
        **changes,
    }


def shown(body: JsonObject, **more: Any) -> dict[str, JsonObject]:
    """Return the sections of such a body."""
    told = {"methods": ["nf4", "int8"], "access": {"ask": "open", "command": "off"}, **more}
    return sections(body, live={"models": {}, "error": None}, memory={}, more=told)


def operation(operation_id: str = "d-1", phase: str | None = "building", **changes: Any) -> JsonObject:
    """Return an operation as ``status.json`` has it."""
    body = {"id": operation_id, "command": "deploy", "model": "kanji", "state": "running", "phase": phase, "attempt": 1}
    return {**body, "detail": None, "decision": None, "error": None, **changes}


def event(name: str, **details: Any) -> Report:
    """Return a line of the trail as the device reports it."""
    return Report(TOPICS.event, dump({"schema": 1, "event": name, "at": "2026-11-23T10:40:00.000Z", **details}))


def progress(operation_id: str, done: int | None, total: int = 41) -> Report:
    """Return the report of an operation that got further, or of one that enters a phase."""
    told = None if done is None else {"done": done, "total": total, "unit": "tensors"}
    body = {"id": operation_id, "phase": "building", "state": "running", "progress": told}
    return Report(TOPICS.operation(operation_id), dump(body))


@contextlib.contextmanager
def site(offer: Offer, body: JsonObject | None = None, **options: Any) -> Iterator[StatusSite]:
    """Serve while the block runs."""
    found = StatusSite("127.0.0.1", 0, lambda: body or status(), offer, **options)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def ask(
    site: StatusSite, method: str, path: str, body: bytes | JsonObject | None = None, **headers: str
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Send one request; ``_`` in a header's name stands for ``-``. Returns status, JSON or bytes, and headers."""
    with contextlib.closing(http.client.HTTPConnection(*address(site), timeout=WAIT_S)) as connection:
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if content is not None:
            given.setdefault("Content-Type", "application/json")
        connection.request(method, path, content, given)
        response = connection.getresponse()
        raw = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(raw) if is_json and raw else raw, response.headers


def address(site: StatusSite) -> tuple[str, int]:
    """Return host and port."""
    host, _, port = site.url.removeprefix("http://").rstrip("/").rpartition(":")
    return host, int(port)


class Listener:
    """One who listens to the stream over HTTP.

    Attributes:
        status: of the answer.
        lines: what came, without line ends.
    """

    def __init__(self, site: StatusSite, **headers: str) -> None:
        self._connection = http.client.HTTPConnection(*address(site), timeout=WAIT_S)
        self._connection.request("GET", "/events", headers={name.replace("_", "-"): v for name, v in headers.items()})
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.kind = self._response.headers.get("Content-Type")

    def next(self, *wanted: str) -> tuple[str, JsonObject, str | None]:
        """Return name, data and id of the next event that is ``wanted``, of any if none is named."""
        name, data, number = "", "", None
        while True:
            line = self._response.readline().decode()
            assert line, "the stream ended"
            field, _, value = line.rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data = value
            elif field == "id":
                number = value
            elif not field and data:
                if not wanted or name in wanted:
                    return name, json.loads(data), number
                name, data, number = "", "", None

    def line(self) -> str:
        """Return the next line, empty at the end."""
        return self._response.readline().decode()

    def close(self) -> None:
        """Leave."""
        self._response.close()
        self._connection.close()


class Shown:
    """What a board looks at; a test changes it.

    Attributes:
        body: of ``status.json``.
        looks: how often somebody looked.
        error: raised instead, once.
    """

    def __init__(self) -> None:
        self.body = status()
        self.looks = 0
        self.error: Exception | None = None
        self.has_looked = threading.Event()

    def __call__(self) -> dict[str, JsonObject]:
        self.looks += 1
        error, self.error = self.error, None
        self.has_looked.set()
        if error is not None:
            raise error
        return shown(self.body)

    def board(self, **options: Any) -> Board:
        """Return a board that looks here."""
        return Board(TOPICS, self, **options)
