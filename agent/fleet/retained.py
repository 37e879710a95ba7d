"""What the broker keeps, heard to a definite end: silence alone never stands for "nothing".

A broker does not say when it has handed over what it keeps. It hands it over in order, though, so what was subscribed
to before a message of one's own was published is there by the time that message comes back; a moment more is left to
brokers that look up what they keep beside their work. That message goes to a device or group that nobody has, on a
topic of the same kind: it takes no other right than what is to be published, and proves that this login hears such.
"""

from __future__ import annotations

import contextlib
import queue
import time
import uuid
from typing import TYPE_CHECKING

from agent.adapters.mqtt_operator import RefusedMessageError
from agent.contract.wire import dump
from agent.fleet.gather import FIRST_S, QUIET_S, until_quiet

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from agent.adapters.mqtt_operator import Heard, Messages

ANSWER_S = 10.0
"""How long one's own message may be on its way, as for every answer of the broker."""


class UnprovenError(Exception):
    """Nobody can say that the broker keeps no more than what was heard; the text says why."""


def one(messages: Messages, topic: str, echo: str) -> bytes | None:
    """Return what the broker keeps on a topic, None if it is certain that it keeps nothing.

    Args:
        messages: an open connection.
        topic: without wildcards.
        echo: a topic of the same kind that nobody listens to.

    Raises:
        UnprovenError: nothing came, and that proves nothing.
    """
    with contextlib.closing(every(messages, echo, topic)) as found:
        return next((heard.payload for heard in found), b"") or None


def every(messages: Messages, echo: str, *filters: str) -> Generator[Heard, None, None]:
    """Yield what the broker keeps on some filters, and what comes there meanwhile.

    Args:
        messages: an open connection.
        echo: a topic that nobody listens to, where a message of one's own tells the end.
        filters: what to hear.

    Raises:
        UnprovenError: that message was refused, or did not come back; what was yielded may not be all.
    """
    word = dump({"schema": 1, "id": f"end-{uuid.uuid4().hex[:12]}"})
    with messages.hear(*filters, echo) as inbox:
        yield from _others(until_quiet(inbox, QUIET_S), echo)
        try:
            messages.publish(echo, word)
        except RefusedMessageError as error:
            yield from _others(until_quiet(inbox, FIRST_S), echo)
            raise UnprovenError(str(error)) from None
        yield from _until_word(inbox, echo, word)
        yield from _others(until_quiet(inbox, QUIET_S), echo)


def _others(heard: Iterable[Heard], echo: str) -> Iterator[Heard]:
    return (each for each in heard if each.topic != echo)


def _until_word(inbox: queue.SimpleQueue[Heard], echo: str, word: bytes) -> Iterator[Heard]:
    end_s = time.monotonic() + ANSWER_S
    while True:
        try:
            heard = inbox.get(timeout=max(0.0, end_s - time.monotonic()))
        except queue.Empty:
            raise UnprovenError(
                f"a message on {echo} did not come back in {ANSWER_S:.0f} s: may this login read it?"
            ) from None
        if heard.topic == echo and heard.payload == word:
            return
        if heard.is_retained:  # a line that is slow, not one that is silent
            end_s = time.monotonic() + ANSWER_S
        if heard.topic != echo:
            yield heard
