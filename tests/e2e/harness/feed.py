"""Lines that a process writes, collected by a thread and waited for by tests: no polling and no sleeping."""

from __future__ import annotations

import threading
import time
from typing import IO, TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Item = TypeVar("Item")
SHOWN = 8


class NothingCameError(AssertionError):
    """What was waited for did not come; the text shows what came last."""


class Feed(Generic[Item]):
    """Everything that a stream brought, in order.

    Args:
        stream: read to its end by a thread of this object's own.
        parse: turns a line into an item.
        name: of the stream, for messages.
    """

    def __init__(self, stream: IO[str], parse: Callable[[str], Item], name: str) -> None:
        self._stream = stream
        self._parse = parse
        self._name = name
        self._items: list[Item] = []
        self._has_ended = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, name=f"feed-{name}", daemon=True)
        self._thread.start()

    def mark(self) -> int:
        """Return a position: ``since`` of what comes from now on."""
        with self._news:
            return len(self._items)

    def since(self, mark: int) -> list[Item]:
        """Return what has come since ``mark``."""
        with self._news:
            return self._items[mark:]

    def wait(
        self,
        wanted: Callable[[Item], bool],
        *,
        since: int = 0,
        timeout_s: float = 60.0,
        about: Callable[[Item], bool] = lambda _item: True,
    ) -> Item:
        """Return the first item since a mark that is ``wanted``, waiting for it if need be.

        What is ``about`` the same is shown when it does not come.

        Raises:
            NothingCameError: after ``timeout_s`` seconds, or when the stream ended first.
        """
        deadline = time.monotonic() + timeout_s
        position = since
        with self._news:
            while True:
                for item in self._items[position:]:
                    if wanted(item):
                        return item
                position = max(position, len(self._items))
                remaining = deadline - time.monotonic()
                if self._has_ended or remaining <= 0:
                    raise self._nothing([item for item in self._items[since:] if about(item)], timeout_s)
                self._news.wait(remaining)

    def join(self, timeout_s: float = 10.0) -> None:
        """Wait for the stream's end."""
        self._thread.join(timeout_s)

    def _nothing(self, came: list[Item], timeout_s: float) -> NothingCameError:
        why = "ended" if self._has_ended else f"did not bring it in {timeout_s:.0f} s"
        last = "\n".join(f"  {item!s:.600}" for item in came[-SHOWN:])
        return NothingCameError(f"{self._name} {why}; {len(came)} came instead, the last ones:\n{last}")

    def _read(self) -> None:
        with self._stream:
            for line in self._stream:
                item = self._parse(line)
                with self._news:
                    self._items.append(item)
                    self._news.notify_all()
        with self._news:
            self._has_ended = True
            self._news.notify_all()
