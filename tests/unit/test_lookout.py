"""When the memory is looked at, and when not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.deployment.lookout import Lookout
from tests.fakes.clock import FakeClock
from tests.fakes.device import FakeDevice

if TYPE_CHECKING:
    from agent.deployment.inbox import BudgetSeen


@dataclass
class Scene:
    """A lookout without its thread."""

    interval_s: float = 5.0
    is_wanted: bool = True
    clock: FakeClock = field(default_factory=FakeClock)
    device: FakeDevice = field(default_factory=FakeDevice)
    seen: list[BudgetSeen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lookout = Lookout(
            self.device,
            self.clock,
            interval_s=lambda: self.interval_s,
            is_wanted=lambda: self.is_wanted,
            post=self.seen.append,
        )

    def wait(self, seconds: int) -> int:
        """Let time pass second by second; return how many looks were taken."""
        before = len(self.seen)
        for _ in range(seconds):
            self.clock.advance(1.0)
            self.lookout.tick()
        return len(self.seen) - before


def test_a_look_is_taken_at_every_interval_and_says_when_it_was() -> None:
    scene = Scene()
    assert scene.wait(20) == 4
    assert [each.at for each in scene.seen] == [1005.0, 1010.0, 1015.0, 1020.0]


def test_a_changed_interval_counts_at_once() -> None:
    scene = Scene(interval_s=3600.0)
    assert scene.wait(60) == 0
    scene.interval_s = 5.0
    assert scene.wait(1) == 1


def test_nobody_is_asked_while_nobody_wants_to_know() -> None:
    scene = Scene(is_wanted=False)
    assert scene.wait(60) == 0
    scene.is_wanted = True
    assert scene.wait(1) == 1


def test_a_look_that_takes_long_is_followed_by_a_long_rest() -> None:
    scene = Scene()

    def slow() -> int:
        scene.clock.advance(2.0)
        return 0

    scene.device.taken_bytes = slow
    assert scene.wait(5) == 1
    assert scene.wait(39) == 0
    assert scene.wait(1) == 1


def test_a_witness_that_fails_is_asked_again_at_the_next_interval() -> None:
    scene = Scene()

    def broken() -> int:
        raise OSError("no driver")

    scene.device.taken_bytes = broken
    assert scene.wait(20) == 0
    scene.device.taken_bytes = lambda: 0
    assert scene.wait(5) == 1
