"""How long a child may be silent."""

from __future__ import annotations

import threading

from agent.adapters.pulse import PAUSE_S, Pulse, Silence
from agent.adapters.systemd import StatusLine, Watchdog


def test_silence_adds_up_until_it_is_too_long() -> None:
    silence = Silence(12.0)
    assert [silence.unheard(5.0) for _ in range(3)] == [False, False, True]
    assert silence.seconds == 15.0


def test_an_answer_ends_the_silence() -> None:
    silence = Silence(12.0)
    silence.unheard(5.0)
    silence.unheard(5.0)
    silence.heard()
    assert not silence.unheard(5.0)


def test_time_in_which_nobody_asked_is_no_silence() -> None:
    silence = Silence(30.0)
    assert not silence.unheard(3600.0)
    assert silence.seconds == PAUSE_S + silence.question_s


def test_a_question_never_takes_longer_than_half_of_what_is_bearable() -> None:
    assert Silence(4.0).question_s == 2.0
    assert Silence(600.0).question_s == 5.0


def test_a_child_that_is_silent_too_long_is_ended_once_and_it_is_said() -> None:
    ended, times = threading.Event(), iter(range(0, 100, 6))
    pulse = Pulse(lambda _within_s: False, ended.set, 8.0, monotonic=lambda: float(next(times)))
    pulse.start()
    assert ended.wait(30.0)
    assert pulse.verdict == "gave no answer for 10 s and was killed"


def test_a_pulse_that_was_stopped_ends_nobody() -> None:
    asked, ended = threading.Event(), threading.Event()

    def ask(_within_s: float) -> bool:
        pulse.stop()
        asked.set()
        return False

    pulse = Pulse(ask, ended.set, 0.0)
    pulse.start()
    assert asked.wait(30.0)
    pulse.join()
    assert (pulse.verdict, ended.is_set()) == (None, False)


def test_a_watchdog_that_nobody_keeps_is_never_fed() -> None:
    said: list[str] = []
    watchdog = Watchdog({}, lambda: 0.0, tell=lambda *lines: said.extend(lines))
    watchdog.feed()
    Watchdog({"WATCHDOG_USEC": "soon"}, lambda: 0.0, tell=lambda *lines: said.extend(lines)).feed()
    assert said == []


def test_a_watchdog_is_fed_several_times_within_its_time() -> None:
    said: list[str] = []
    times = iter([0.0, 5.0, 9.9, 10.0, 11.0])
    watchdog = Watchdog({"WATCHDOG_USEC": "60000000"}, lambda: next(times), tell=lambda *lines: said.extend(lines))
    fed = []
    for _ in range(5):
        watchdog.feed()
        fed.append(len(said))
    assert fed == [1, 1, 1, 2, 2]


def test_a_watchdog_goes_hungry_while_the_server_gives_no_answer_and_is_fed_as_soon_as_it_does() -> None:
    said: list[str] = []
    times, health = iter([0.0, 20.0, 40.0, 41.0]), iter([True, False, False, True])
    watchdog = Watchdog(
        {"WATCHDOG_USEC": "60000000"}, lambda: next(times), lambda: next(health), lambda *lines: said.extend(lines)
    )
    fed = []
    for _ in range(4):
        watchdog.feed()
        fed.append(len(said))
    assert fed == [1, 1, 1, 2]


def test_a_server_is_overdue_when_it_outlives_its_own_end() -> None:
    times = iter([0.0, 30.0, 36.0, 36.1])
    pulse = Pulse(lambda _within_s: False, lambda: None, 30.0, monotonic=lambda: next(times))
    assert [pulse.is_overdue for _ in range(3)] == [False, False, True]


def test_the_status_line_is_said_when_it_changes_and_on_one_line() -> None:
    said: list[str] = []
    texts, times = iter(["a", "a", "b\nREADY=1"]), iter([0.0, 0.5, 1.0, 2.0])
    line = StatusLine(lambda: next(texts), lambda: next(times), lambda *lines: said.extend(lines))
    for _ in range(4):
        line.look()
    assert said == ["STATUS=a", "STATUS=b READY=1"]
