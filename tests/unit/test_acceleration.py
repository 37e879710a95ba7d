"""Faster ways to call a model: tried by measurement, left again for every reason there is."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from agent.serving import acceleration, residency
from agent.serving.acceleration import DeclinedError, Trial, attempt, distance, within
from agent.serving.errors import BadRequestError
from agent.serving.residency import WORTH
from agent.serving.terms import Terms


class Clock:
    """Moves only when a model computes."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (acceleration, residency):
        monkeypatch.setattr(module, "time", clock)
    return clock


@dataclass
class Model:
    """Takes ``own_s`` a pass, and ``way_s`` by the way, which also answers ``off`` more; a way itself."""

    clock: Clock
    own_s: float = 1.0
    way_s: float = 0.5
    off: float = 0.0
    error: Exception | None = None
    name: str = "fast"
    is_changed: bool = False

    def begin(self) -> None:
        self.clock.now += 20.0
        if self.error is not None:
            raise self.error

    def change(self) -> None:
        self.is_changed = True

    def end(self) -> None:
        self.is_changed = False

    def compute(self) -> None:
        self.clock.now += self.way_s if self.is_changed else self.own_s

    def answers(self) -> list[Any]:
        return [np.array([1.0, 2.0]) + (self.off if self.is_changed else 0.0)]

    def attempt(self) -> Trial:
        return attempt(self, self.compute, self.answers, 1e-3)


def test_what_is_faster_by_more_than_the_margin_is_kept_and_says_by_how_much(clock: Clock) -> None:
    model = Model(clock)
    found = model.attempt()
    assert (found.is_kept, model.is_changed) == (True, True)
    assert (found.own_ms, found.ms, found.seconds) == (1000.0, 500.0, 20.0)
    assert found.reason == "it is 2.00 times as fast: it is kept"
    assert found.to_json()["is_kept"]


@pytest.mark.parametrize(("share", "is_kept"), [(WORTH, True), (WORTH + 0.01, False), (3.0, False)])
def test_what_is_not_worth_it_is_left_again(clock: Clock, share: float, *, is_kept: bool) -> None:
    model = Model(clock, way_s=share)
    found = model.attempt()
    assert (found.is_kept, model.is_changed) == (is_kept, is_kept)
    assert found.ms == pytest.approx(share * 1000.0)


@pytest.mark.parametrize("off", [0.1, float("nan"), float("inf")])
def test_answers_that_differ_leave_the_model_as_it_was_however_fast_they_come(clock: Clock, off: float) -> None:
    model = Model(clock, way_s=0.001, off=off)
    found = model.attempt()
    assert (found.is_kept, model.is_changed) == (False, False)
    assert found.reason.endswith("of their largest, 0.001 is allowed")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DeclinedError("graphs are for GPUs"), "graphs are for GPUs"),
        (RuntimeError("no C++ compiler\nand a long story"), "it failed: RuntimeError: no C++ compiler"),
        (MemoryError(), "there is not enough memory for it"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "there is not enough memory for it"),
    ],
)
def test_whatever_goes_wrong_leaves_the_model_as_it_was(clock: Clock, error: Exception, reason: str) -> None:
    model = Model(clock, error=error)
    found = model.attempt()
    assert (found.is_kept, found.reason, found.seconds, model.is_changed) == (False, reason, 20.0, False)
    assert (found.own_ms, found.ms) == (None, None)


def test_an_error_that_takes_the_device_along_is_not_got_over(clock: Clock) -> None:
    model = Model(clock, error=RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        model.attempt()


def test_a_device_that_is_busy_for_a_while_makes_neither_way_look_slow(clock: Clock) -> None:
    class Busy(Model):
        passes = 0

        def compute(self) -> None:
            self.passes += 1
            super().compute()
            if 10 < self.passes <= 20:
                self.clock.now += 0.1

    found = Busy(clock, own_s=0.01, way_s=0.005).attempt()
    assert (found.is_kept, found.own_ms, found.ms) == (True, 10.0, 5.0)


def test_distances_are_relative_to_the_largest_value_of_an_output() -> None:
    near, far = [np.array([100.0, 1.0])], [np.array([100.0, 2.0])]
    assert distance(near, far) == pytest.approx(0.01)
    assert distance([np.zeros(2)], [np.zeros(2)]) == 0.0
    assert distance([np.zeros((0, 2))], [np.zeros((0, 2))]) == 0.0
    assert distance([np.zeros(3)], [np.zeros(2)]) == float("inf")
    assert np.isnan(distance([np.array([np.nan])], [np.array([1.0])]))


def test_work_without_end_is_left_alone_after_its_time() -> None:
    held = threading.Event()
    with pytest.raises(DeclinedError, match=r"longer than 0\.05 s"):
        within(0.05, held.wait)
    held.set()


def test_what_work_raises_is_raised_where_it_was_asked_for() -> None:
    def fail() -> None:
        raise LookupError("none")

    with pytest.raises(LookupError):
        within(10.0, fail)
    within(10.0, lambda: None)


@pytest.mark.parametrize(
    "body",
    [
        "auto", [], {"speed": "auto"}, {"compile": "always"}, {"graphs": True}, {"residency": ["auto"]},
        {"allowed_bytes": "1"}, {"allowed_bytes": None}, {"texts_bytes": 1.5},
    ],
)  # fmt: skip
def test_terms_that_make_no_sense_are_refused(body: Any) -> None:
    with pytest.raises(BadRequestError):
        Terms.from_json(body)


def test_terms_are_read() -> None:
    assert Terms.from_json({}) == Terms()
    body = {"residency": "auto", "compile": "auto", "graphs": "off", "allowed_bytes": 5, "texts_bytes": None}
    assert Terms.from_json(body) == Terms("auto", "auto", "off", 5, None)
