"""The operator's own record of a rollout: one JSON line per event. It only caches; without it the broker is asked.

The machine is pure, so its events are its state: they are played again when the program starts. What a person asks for
from another terminal lies in a file beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

from agent.fleet.rollout.events import Asked, Heard, NotNeeded, Present, Purpose, Refused, Send, Serves, Ticked, Told
from agent.fleet.rollout.machine import advance
from agent.fleet.rollout.membership import Membership
from agent.fleet.rollout.state import begin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.fleet.rollout.events import Event, Word
    from agent.fleet.rollout.plan import Plan
    from agent.fleet.rollout.state import Rollout

JsonObject = dict[str, Any]
_WORDS: dict[str, type[Word]] = {kind.__name__: kind for kind in (Present, Told, Serves, NotNeeded)}
ASKED = ("approve", "pause", "resume", "abort")


class JournalError(Exception):
    """The record cannot be used; the text says what to do."""


class Journal:
    """The record of one rollout, in a directory of its own.

    Args:
        directory: where it lies; made if it is missing.
        plan: whose record it is.
    """

    def __init__(self, directory: Path, plan: Plan) -> None:
        self._plan = plan
        self._file = directory / "journal.jsonl"
        self._requests = directory / "requests.jsonl"
        self._open: IO[bytes] | None = None
        self.directory = directory

    @property
    def exists(self) -> bool:
        """Whether there is a record."""
        return self._file.exists()

    def lock(self) -> None:
        """Keep other processes of this machine from running the same rollout.

        Raises:
            JournalError: one does, or the directory cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._open = self._file.open("ab")
            fcntl.flock(self._open, fcntl.LOCK_EX | fcntl.LOCK_NB)
            whole = sum(len(line) for line in self._file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
            self._open.truncate(whole)  # what was cut off was never acted upon
        except BlockingIOError:
            self.close()
            raise JournalError(f"rollout {self._plan.id} is being run by another process here: {self._file}") from None
        except OSError as error:
            raise JournalError(f"{error.filename}: {error.strerror}, expected a directory to write to") from None

    def start(self, found: Membership, now: float) -> None:
        """Begin the record with who takes part."""
        self._append({"plan": self._plan.digest, "at": now, "membership": asdict(found)})

    def append(self, event: Event, now: float, request: int | None = None) -> None:
        """Record an event so that it outlives a power cut; ``request`` is the number of the last one in it."""
        more = {} if request is None else {"request": request}
        self._append({"at": now, **_told(event), **more})

    def close(self) -> None:
        """Let others run it."""
        if self._open is not None:
            self._open.close()

    def membership(self) -> Membership | None:
        """Return who takes part; None where nothing is recorded.

        Raises:
            JournalError: it is the record of another plan.
        """
        head = next(self._lines(), None)
        if head is None:
            return None
        if head.get("plan") != self._plan.digest:
            raise JournalError(
                f"rollout {self._plan.id} was begun with another plan; what was sent stays sent, so expected the plan "
                f"that it was begun with, a new id, or this one with --forget\n  the record: {self._file}"
            )
        found = head["membership"]
        waves = tuple(tuple(wave) for wave in found["waves"])
        return Membership(waves, *(tuple(found[name]) for name in ("left_out", "strangers", "outside")))

    def events(self) -> Iterator[tuple[Event, float]]:
        """Yield what happened, and when in seconds since 1970."""
        for line in self._lines():
            if "event" in line:
                yield _read(line), line["at"]

    def history(self) -> Iterator[tuple[float, Rollout]]:
        """Yield the rollout after each event, beginning with that of which nothing is known."""
        found = self.membership()
        if found is None:
            return
        rollout = begin(found.waves)
        yield next(self._lines())["at"], rollout
        for event, at in self.events():
            rollout, _ = advance(self._plan, rollout, event, at)
            yield at, rollout

    def forget(self) -> None:
        """Put the record away; the one before it is lost. One that was locked stays so, under the same name."""
        for file in (self._file, self._requests):
            if file.exists():
                file.replace(file.with_suffix(".old"))
        if self._open is not None:
            self.close()
            self.lock()

    def ask(self, what: str, wave: int | None) -> None:
        """Leave a request for whoever runs the rollout, now or later."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._requests.open("ab") as file:
            _write(file, {"ask": what, "wave": wave})

    def requests(self, *, since: int) -> list[Asked]:
        """Return what was asked for from request number ``since`` on."""
        lines = list(_lines(self._requests))
        return [Asked(line["ask"], line["wave"]) for line in lines[since:]]

    def requests_done(self) -> int:
        """Return how many requests were taken up."""
        return max((line["request"] + 1 for line in self._lines() if "request" in line), default=0)

    def _append(self, line: JsonObject) -> None:
        if self._open is None:
            raise RuntimeError("the journal was not locked")
        _write(self._open, line)

    def _lines(self) -> Iterator[JsonObject]:
        return _lines(self._file)


def _write(file: IO[bytes], line: JsonObject) -> None:
    file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _lines(file: Path) -> Iterator[JsonObject]:
    """Yield the lines of a file as far as they are whole: the last one may have been cut off."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            return
        yield value


def _told(event: Event) -> JsonObject:
    if isinstance(event, Heard):
        words = [[type(word).__name__, *asdict(word).values()] for word in event.words]
        asked = [[each.what, each.wave] for each in event.asked]
        return {"event": "heard", "words": words, **({"asked": asked} if asked else {})}
    if isinstance(event, Asked):
        return {"event": "asked", "what": event.what, "wave": event.wave}
    if isinstance(event, Refused):
        return {"event": "refused", "sends": [[send.device, str(send.purpose)] for send in event.sends]}
    return {"event": "ticked"}


def _read(line: JsonObject) -> Event:
    if line["event"] == "heard":
        asked = tuple(Asked(*each) for each in line.get("asked", ()))
        return Heard(tuple(_word(*word) for word in line["words"]), asked)
    if line["event"] == "asked":
        return Asked(line["what"], line["wave"])
    if line["event"] == "refused":
        return Refused(tuple(Send(device, Purpose(purpose)) for device, purpose in line["sends"]))
    return Ticked()


def _word(kind: str, *values: Any) -> Word:
    if kind == "Told":
        device, purpose, state, detail = values
        return Told(device, Purpose(purpose), state, detail)
    return _WORDS[kind](*values)
