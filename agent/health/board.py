"""What the page shows, kept current for as long as somebody looks, and handed out as server-sent events.

INVARIANTS:
- whoever changes something only leaves a word here (``hear``): nothing waits for a browser;
- what is shown is looked up on one thread, four times a second at most, and not at all while nobody looks;
- a listener has no queue: one that is slow gets the newest state of each section, and of the events those still kept;
- listeners are few, and each is told something every ``KEEP_ALIVE_S``, so that dead ones are noticed.

The events of the trail have ids: whoever comes back with the last one gets what came since.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import structlog

from agent.contract.wire import JsonObject, dump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agent.contract.reports import Report
    from agent.contract.topics import Topics

log = structlog.get_logger("page")

LISTENERS = 8
EVENTS_KEPT = 200
LARGEST_EVENT_BYTES = 4096
"""A larger one is told without its details."""
HEARD_KEPT = 256
PAUSE_S, GLANCE_S, LOOK_S, KEEP_ALIVE_S = 0.25, 1.0, 2.0, 15.0
_STILL = ": still here\nevent: still\ndata: {}\n\n"
"""A comment for what lies in between, and an event for the page, to which comments are not shown."""
RETRY_MS = 2000
"""How long a browser waits before it comes back."""


class FullError(Exception):
    """There are as many listeners as there may be."""


class Board:
    """The state of the page.

    Args:
        topics: of the device, by which reports are told apart.
        look: returns what is to be shown, a JSON object a section; asked on the board's own thread. ``operations`` has
            the ``newest``.
        listeners: how many may listen at a time.
        look_s: how often that is asked while nothing is heard, in seconds.
        keep_alive_s: how often a listener is told something at least, in seconds.
    """

    def __init__(
        self,
        topics: Topics,
        look: Callable[[], Mapping[str, JsonObject]],
        *,
        listeners: int = LISTENERS,
        look_s: float = LOOK_S,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._event_topic = topics.event
        self._operation_topics = topics.operation("any").removesuffix("any")
        self._look = look
        self._most = listeners
        self._look_s = look_s
        self._keep_alive_s = keep_alive_s
        self._run = uuid.uuid4().hex[:8]
        self._news = threading.Condition()
        self._wake = threading.Event()
        self._is_started = self._is_closed = False
        self._listening = 0
        self._heard: deque[Report] = deque(maxlen=HEARD_KEPT)
        self._version = 0
        self._sections: dict[str, tuple[int, str]] = {}
        self._progress: dict[str, JsonObject] = {}
        self._number = 0
        self._events: deque[tuple[int, str]] = deque(maxlen=EVENTS_KEPT)
        self._thread = threading.Thread(target=self._work, name="board", daemon=True)

    def start(self) -> None:
        """Start looking; what was heard before is forgotten."""
        self._is_started = True
        self._thread.start()

    def close(self) -> None:
        """End every listener, and the looking."""
        with self._news:
            self._is_closed = True
            self._news.notify_all()
        self._wake.set()

    def hear(self, report: Report) -> None:
        """Take note of what the device says; from any thread, at once and without an error."""
        if not self._is_started:
            return
        if report.topic == self._event_topic or report.topic.startswith(self._operation_topics):
            self._heard.append(report)
        self._wake.set()

    @contextlib.contextmanager
    def listening(self, last_id: str | None = None) -> Iterator[Iterator[bytes]]:
        """Take a place; what it gives yields server-sent events until the board is closed.

        First comes everything there is, then what changes. Where nothing does it yields nothing every ``GLANCE_S``, so
        that whoever writes can see whether somebody still listens.

        Args:
            last_id: of the last event that the listener has, if it was here before.

        Raises:
            FullError: all places are taken.
        """
        with self._news:
            if self._listening >= self._most:
                raise FullError(f"{self._listening} listen already, at most {self._most} may")
            self._listening += 1
        self._wake.set()
        try:
            yield self._frames(self._number_of(last_id))
        finally:
            with self._news:
                self._listening -= 1
                if not self._listening:
                    self._sections.clear()  # the next one to come shall not see what is old

    def _frames(self, number: int) -> Iterator[bytes]:
        version, hello = 0, _frame("hello", {"run": self._run, "resumes": number > 0})
        yield f"retry: {RETRY_MS}\n{hello}".encode()
        said_at = time.monotonic()
        while True:
            with self._news:
                self._news.wait_for(partial(self._has_news, version, number), GLANCE_S)
                if self._is_closed:
                    return
                frames = [frame for changed, frame in self._sections.values() if changed > version]
                frames += [frame for told, frame in self._events if told > number]
                version, number = self._version, self._number
            now = time.monotonic()
            if not frames and now - said_at >= self._keep_alive_s:
                frames = [_STILL]
            if frames:
                said_at = now
            yield "".join(frames).encode()

    def _has_news(self, version: int, number: int) -> bool:
        return self._is_closed or (bool(self._sections) and (self._version > version or self._number > number))

    def _number_of(self, last_id: str | None) -> int:
        run, _, number = (last_id or "").partition("-")
        return int(number) if run == self._run and number.isdecimal() and int(number) <= self._number else 0

    def _work(self) -> None:
        while not self._is_closed:
            self._wake.wait(self._look_s if self._listening else None)
            self._wake.clear()
            try:
                self._refresh()
            except Exception:
                log.exception("page_failed", at="look")
            time.sleep(PAUSE_S)

    def _refresh(self) -> None:
        self._keep(list(self._take_up()))
        if self._listening:
            shown = dict(self._look())
            open_now = {each["id"] for each in shown["operations"]["newest"] if each["phase"] is not None}
            self._progress = {name: told for name, told in self._progress.items() if name in open_now}
            self._show({**shown, "progress": self._progress})

    def _keep(self, events: Sequence[JsonObject]) -> None:
        with self._news:
            for told in events:
                self._number += 1
                self._events.append((self._number, _frame("event", told, f"{self._run}-{self._number}")))
            self._news.notify_all()

    def _show(self, sections: Mapping[str, JsonObject]) -> None:
        with self._news:
            for name, value in sections.items():
                frame = _frame(name, value)
                if self._sections.get(name, (0, ""))[1] != frame:
                    self._version += 1
                    self._sections[name] = (self._version, frame)
            self._news.notify_all()

    def _take_up(self) -> Iterator[JsonObject]:
        """Sort what was heard: yield the events, keep how far operations are."""
        while self._heard:
            report = self._heard.popleft()
            body: JsonObject = json.loads(report.payload)
            if report.topic == self._event_topic:
                is_large = len(report.payload) > LARGEST_EVENT_BYTES
                yield {name: body[name] for name in ("event", "at")} if is_large else body
            elif body["progress"] is not None:
                self._progress[body["id"]] = {"phase": body["phase"], **body["progress"]}
            else:
                self._progress.pop(body["id"], None)


def _frame(name: str, value: JsonObject, number: str | None = None) -> str:
    """Return one server-sent event; JSON has no line ends of its own, so one line of data holds it."""
    head = f"id: {number}\n" if number else ""
    return f"{head}event: {name}\ndata: {dump(value).decode()}\n\n"
