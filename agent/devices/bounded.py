"""A question that may never be answered, asked so that nobody waits for it longer than a deadline.

A driver that is in trouble does not always fail: some calls sit in the kernel for as long as it likes, and no signal
ends them. So each question is asked on a daemon thread, and while one has not come back no other is asked: a hung
driver costs one thread, however often it is looked at. A thread does not survive a fork: a child starts afresh.
"""

from __future__ import annotations

import os
import threading
from threading import Event
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

OK = "ok"
HUNG = "hung"
DEADLINE_S = 2.0


class Bounded(Generic[T]):
    """Asks one question, over and over, with a deadline each time.

    Args:
        question: what to ask; may block for ever, may raise.
        name: of the thread.
        deadline_s: seconds that a caller waits at most.
    """

    def __init__(self, question: Callable[[], T], *, name: str, deadline_s: float = DEADLINE_S) -> None:
        self._question = question
        self._name = name
        self._deadline_s = deadline_s
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._call: _Call[T] | None = None

    def ask(self) -> tuple[T | None, str]:
        """Return the answer and ``ok``, or None and the reason: ``hung``, or what was raised.

        Callers that come while the question is open share its answer.
        """
        if self._pid != os.getpid():
            self._pid, self._lock, self._call = os.getpid(), threading.Lock(), None
        with self._lock:
            if self._call is None or self._call.done.is_set():
                try:
                    self._call = _Call(self._question, self._name)
                except RuntimeError as error:  # the system has no thread to give
                    return None, str(error)
            call = self._call
        if call.is_late or not call.done.wait(self._deadline_s):
            call.is_late = True
            return None, HUNG
        return call.answer, call.word


class _Call(Generic[T]):
    """One question on its way. ``is_late`` is set once somebody has waited in vain; it then counts no more."""

    def __init__(self, question: Callable[[], T], name: str) -> None:
        self.done = Event()
        self.is_late = False
        self.answer: T | None = None
        self.word = OK
        threading.Thread(target=self._run, args=(question,), name=name, daemon=True).start()

    def _run(self, question: Callable[[], T]) -> None:
        try:
            self.answer = question()
        except Exception as error:  # noqa: BLE001 - a witness that breaks has said nothing, and that is all
            self.word = f"{type(error).__name__}: {error}"
        finally:
            self.done.set()
