"""Room for so many messages: the next one waits, and never for ever."""

from __future__ import annotations

import threading

from agent.adapters.room import Room

LONG_S = 60.0


def entering(room: Room) -> threading.Thread:
    thread = threading.Thread(target=room.enter, daemon=True)
    thread.start()
    return thread


def test_one_more_enters_when_one_has_left() -> None:
    room = Room(2, LONG_S)
    room.enter()
    room.enter()
    waits = entering(room)
    waits.join(0.05)
    assert waits.is_alive()
    room.leave()
    waits.join(LONG_S)
    assert not waits.is_alive()


def test_what_never_leaves_does_not_end_the_reading() -> None:
    room = Room(1, 0.01)
    room.enter()
    room.enter()


def test_whoever_waits_at_the_end_is_let_in() -> None:
    room = Room(1, LONG_S)
    room.enter()
    waits = entering(room)
    room.close()
    waits.join(LONG_S)
    assert not waits.is_alive()
    room.enter()


def test_leaving_twice_makes_no_room_that_is_not_there() -> None:
    room = Room(1, LONG_S)
    room.leave()
    room.leave()
    room.enter()
    waits = entering(room)
    waits.join(0.05)
    assert waits.is_alive()
    room.close()
