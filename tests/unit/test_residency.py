"""Whether weights are kept unpacked: what was asked for, what there is room for, what is faster."""

from __future__ import annotations

import pytest

from agent.serving import residency
from agent.serving.residency import Residency, Wish, decide

NEEDED = 1000


class Clock:
    """Time that only passes while something is computed."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Weights:
    """Packed ones take ``packed_s`` a call, unpacked ones ``unpacked_s``."""

    def __init__(self, clock: Clock, packed_s: float, unpacked_s: float) -> None:
        self.clock, self.packed_s, self.unpacked_s = clock, packed_s, unpacked_s
        self.is_kept = False
        self.calls = 0

    def decide(self, wish: Wish, needed: int = NEEDED) -> Residency:
        return decide(wish, needed, self.keep, self.drop, self.compute)

    def keep(self) -> None:
        self.is_kept = True

    def drop(self) -> None:
        self.is_kept = False

    def compute(self) -> None:
        self.calls += 1
        self.clock.now += self.unpacked_s if self.is_kept else self.packed_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(residency, "time", clock)
    return clock


def test_packed_weights_stay_packed_without_a_measurement(clock: Clock) -> None:
    weights = Weights(clock, 1.0, 0.1)
    assert not weights.decide(Wish("packed", 10 * NEEDED)).is_unpacked
    assert (weights.is_kept, weights.calls) == (False, 0)


@pytest.mark.parametrize("mode", ["unpacked", "auto"])
def test_without_room_they_stay_packed_and_the_reason_has_both_numbers(clock: Clock, mode: residency.Mode) -> None:
    weights = Weights(clock, 1.0, 0.1)
    found = weights.decide(Wish(mode, NEEDED - 1))
    assert (found.is_unpacked, weights.is_kept, weights.calls) == (False, False, 0)
    assert "1,000 bytes, 999 are free" in found.reason


def test_unpacked_needs_room_and_no_proof(clock: Clock) -> None:
    weights = Weights(clock, 0.1, 1.0)
    found = weights.decide(Wish("unpacked", NEEDED))
    assert (found.is_unpacked, found.unpacked_bytes, weights.is_kept) == (True, NEEDED, True)


def test_auto_keeps_what_is_faster_and_says_by_how_much(clock: Clock) -> None:
    weights = Weights(clock, 0.020, 0.010)
    found = weights.decide(Wish("auto", NEEDED))
    assert (found.is_unpacked, weights.is_kept) == (True, True)
    assert found.packed_ms == pytest.approx(20.0)
    assert found.unpacked_ms == pytest.approx(10.0)
    assert "2.00 times as fast" in found.reason


@pytest.mark.parametrize("unpacked_s", [0.0185, 0.020, 0.5])
def test_auto_gives_the_memory_back_where_it_buys_too_little(clock: Clock, unpacked_s: float) -> None:
    weights = Weights(clock, 0.020, unpacked_s)
    found = weights.decide(Wish("auto", NEEDED))
    assert (found.is_unpacked, weights.is_kept) == (False, False)
    assert "better saved" in found.reason


def test_a_slow_model_is_not_measured_for_long(clock: Clock) -> None:
    weights = Weights(clock, 5.0, 1.0)
    assert weights.decide(Wish("auto", NEEDED)).is_unpacked
    assert weights.calls == 4, "one that is not counted and one that is, each way"


def test_a_model_without_packed_weights_says_so(clock: Clock) -> None:
    assert Weights(clock, 1.0, 1.0).decide(Wish("auto", NEEDED), needed=0).reason == "no weight is packed"
