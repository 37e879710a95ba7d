"""Throughput and latency from counters: rates between two looks, and nothing made up where there is no rate."""

from __future__ import annotations

from typing import Any

import pytest

from agent.health.meter import EVERY_S, LONGEST_GAP_S, POINTS, Meter
from tests.fakes.clock import FakeClock

LATENCY = {"p50": 1.0, "p95": 2.0, "p99": 3.0}


class Counters:
    """A server whose counters a test sets."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.reads = 0
        self.error: Exception | None = None
        self.model: dict[str, Any] = {
            "release": "r1",
            "method": "nf4",
            "requests": 100,
            "failures": 1,
            "queue": 0,
            "in_flight": 1,
            "latency_ms": LATENCY,
            "answered": 99,
            "answering_s": 9.9,
        }
        self.meter = Meter(self.read, self.clock.monotonic)

    def read(self) -> dict[str, Any]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return {"models": {"kanji": dict(self.model)}, "rss_bytes": 7}

    def pass_by(self, seconds: float = EVERY_S, **counted: float) -> dict[str, Any]:
        """Let time pass and requests be answered; return what the meter says of the model."""
        self.clock.advance(seconds)
        for name, more in counted.items():
            self.model[name] += more
        told: dict[str, Any] = self.meter.look()["models"]["kanji"]
        return told


@pytest.fixture
def counters() -> Counters:
    counters = Counters()
    counters.meter.look()
    return counters


def test_the_first_look_has_counters_and_no_rate(counters: Counters) -> None:
    told = counters.meter.look()
    assert (told["error"], told["server_rss_bytes"]) == (None, 7)
    assert (told["models"]["kanji"]["requests"], told["models"]["kanji"]["per_s"]) == (100, [])
    assert told["models"]["kanji"]["latency_ms"] == LATENCY


def test_a_later_look_has_what_was_counted_in_between(counters: Counters) -> None:
    told = counters.pass_by(requests=10, answered=8, answering_s=0.04)
    assert (told["per_s"], told["mean_ms"]) == ([5.0], [5.0])


def test_a_time_without_answers_has_no_latency(counters: Counters) -> None:
    told = counters.pass_by()
    assert (told["per_s"], told["mean_ms"]) == ([0.0], [None])


def test_the_server_is_asked_no_more_often_than_there_are_points(counters: Counters) -> None:
    counters.pass_by(EVERY_S / 2, requests=10)
    assert counters.reads == 1
    counters.pass_by(EVERY_S / 2)
    assert counters.reads == 2


def test_a_new_release_and_a_new_server_count_from_nothing(counters: Counters) -> None:
    counters.model |= {"release": "r2", "requests": 4, "answered": 4, "answering_s": 0.4}
    assert counters.pass_by()["per_s"] == [2.0]
    counters.model |= {"requests": 2, "answered": 2, "answering_s": 0.1}
    told = counters.pass_by()
    assert (told["per_s"], told["mean_ms"]) == ([2.0, 1.0], [100.0, 50.0])


def test_after_a_long_time_without_a_look_the_line_begins_anew(counters: Counters) -> None:
    counters.pass_by(requests=10)
    assert counters.pass_by(LONGEST_GAP_S + 1, requests=1000)["per_s"] == []


def test_only_so_many_points_are_kept(counters: Counters) -> None:
    for number in range(POINTS + 5):
        told = counters.pass_by(requests=number)
    assert len(told["per_s"]) == POINTS
    assert told["per_s"][-1] == (POINTS + 4) / EVERY_S


def test_a_server_that_does_not_answer_is_told_as_that_and_the_line_goes_on_afterwards(counters: Counters) -> None:
    counters.error = RuntimeError("it is being replaced")
    counters.clock.advance(EVERY_S)
    told = counters.meter.look()
    assert (told["error"], told["models"]) == ("it is being replaced", {})
    counters.error = None
    assert counters.pass_by(requests=8)["per_s"] == [2.0], "over the time of both looks"
