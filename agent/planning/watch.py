"""Watches the memory budget: when it has changed for good, says which model should be planned again. Pure, no clock.

The rules:
* down: the reserve is broken, or ``memory.budget`` is what binds, without a break for ``down_after_s``, and the plan
  would choose something smaller;
* up: with the budget reduced by ``up_margin`` the plan would choose something better, without a break for
  ``up_after_s``, and the model has served unchanged for ``min_dwell_s``;
* only what ``auto`` chose is switched, one model at a time, and never while the agent's own work disturbs the memory;
* what a model holds is part of what it may take: looks are kept as what *others* leave, so that a switch of ours
  never looks like a change of theirs;
* a wish that came to nothing is not repeated until the situation has changed by more than the hysteresis, and not
  before a pause that doubles each time.

Noise is met by the median of the last ``WINDOW`` looks. The mean would turn a step into a slope that passes through
every method on its way, and the minimum would take one spike for a shortage; the median drops the spike and leaves
the step a step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from statistics import median_low
from typing import TYPE_CHECKING

from agent.planning.patience import Situation, Spell, Track, WatchPolicy
from agent.planning.scene import Direction, Held, Scene

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.planning.budget import Budget
    from agent.planning.scene import WouldChoose

__all__ = ["BudgetWatch", "Held", "Sight", "WatchPolicy", "Wish"]

WINDOW = 5
"""Looks whose median counts: two of five may be wild. A step is seen after three."""
MIN_LOOKS = 3


@dataclass(frozen=True)
class Wish:
    """A model that should be planned again.

    Attributes:
        model: which one.
        method: what the plan would choose.
        direction: whether that is smaller or better.
        reason: one sentence with the numbers.
    """

    model: str
    method: str
    direction: Direction
    reason: str


@dataclass(frozen=True)
class Sight:
    """What came of one look: at most one wish, and what is wrong, for as long as it is."""

    wish: Wish | None = None
    alarm: str | None = None


class BudgetWatch:
    """Takes looks one after another and keeps what it has to remember between them."""

    def __init__(self) -> None:
        self._looks: deque[int] = deque(maxlen=WINDOW)
        self._tracks: dict[str, Track] = {}
        self._pending: tuple[str, str, Situation] | None = None
        self._trouble, self._calm = Spell(), Spell()
        self._alarm: str | None = None

    def observe(
        self,
        now: float,
        budget: Budget,
        served: Mapping[str, Held],
        would_choose: WouldChoose,
        policy: WatchPolicy,
        *,
        is_quiet: bool = True,
    ) -> Sight:
        """Take one look.

        Args:
            now: monotonic seconds.
            budget: the device's memory as it is, everything that is served being loaded.
            served: every model that is loaded.
            would_choose: what ``auto`` would choose for a model with such a device, None if nothing fits. The budget
                that it is given counts what the model holds as taken; giving that back is its business.
            policy: how patient to be.
            is_quiet: whether no operation is open: one builds, and loads beside what serves, so its looks say nothing.
                A wish has been fulfilled or lost once it is quiet again.
        """
        if policy.mode == "off":
            self._forget()
            return Sight()
        self._meet(now, served)
        if not is_quiet:
            self._start_over()
            return Sight(None, self._alarm)
        self._judge_last_wish(now, policy)
        taken_bytes = sum(held.resident_bytes for held in served.values())
        self._looks.append(budget.available_bytes + taken_bytes)
        if len(self._looks) < MIN_LOOKS:
            return Sight(None, self._alarm)
        smooth = replace(budget, available_bytes=median_low(self._looks) - taken_bytes)
        return self._decide(now, Scene(smooth, served, would_choose), policy)

    def _forget(self) -> None:
        """What was seen before says nothing once the watch is switched on again."""
        self._tracks, self._pending, self._alarm = {}, None, None
        self._start_over()

    def _start_over(self) -> None:
        self._looks.clear()
        self._trouble, self._calm = Spell(), Spell()
        for track in self._tracks.values():
            track.start_over()

    def _meet(self, now: float, served: Mapping[str, Held]) -> None:
        """Begin anew with every model that is not the one that was seen before."""
        for name in self._tracks.keys() - served.keys():
            del self._tracks[name]
        for name, held in served.items():
            if name not in self._tracks or self._tracks[name].release != held.release:
                self._tracks[name] = Track(held.release, now)

    def _judge_last_wish(self, now: float, policy: WatchPolicy) -> None:
        """A wish whose model still serves the same release came to nothing."""
        if self._pending is None:
            return
        (name, release, situation), self._pending = self._pending, None
        track = self._tracks.get(name)
        if track is not None and track.release == release:
            track.fail(now, situation, policy)

    def _decide(self, now: float, scene: Scene, policy: WatchPolicy) -> Sight:
        ripe: list[tuple[str, Situation]] = []
        troubles: list[str] = []
        for name, track in self._tracks.items():
            shortage = scene.shortage(name)
            better = scene.improvement(name, policy.up_margin) if shortage is None else None
            if shortage is not None:
                troubles.append(shortage.sentence)
            methods: dict[Direction, str | None] = {"down": shortage.remedy if shortage else None, "up": better}
            for direction, method in methods.items():
                track.see(now, direction, policy, holds=method is not None)
                if method is not None and track.is_ripe(now, direction, policy):
                    ripe.append((name, Situation(direction, method, scene.room_bytes(name))))
        if policy.mode == "act":
            # Nothing grows while something is short; of several the largest goes first: it gives back the most.
            ripe.sort(key=lambda item: (item[1].direction == "up", -scene.served[item[0]].resident_bytes))
            for name, situation in ripe:
                if self._tracks[name].may(now, situation, policy) and not (situation.direction == "up" and troubles):
                    return self._utter(name, situation, scene, policy)
        self._raise_or_lower(now, scene, troubles, policy.down_after_s)
        return Sight(None, self._alarm)

    def _utter(self, name: str, situation: Situation, scene: Scene, policy: WatchPolicy) -> Sight:
        self._pending = name, self._tracks[name].release, situation
        self._start_over()
        spare = "" if situation.direction == "down" else f" with {policy.up_margin:.0%} of the budget to spare"
        change = f"{situation.method} instead of {scene.served[name].method}{spare}"
        reason = f"for {policy.after_s(situation.direction):.0f} s {scene}: {name} could be served by {change}"
        return Sight(Wish(name, situation.method, situation.direction, reason), self._alarm)

    def _raise_or_lower(self, now: float, scene: Scene, troubles: list[str], after_s: float) -> None:
        """An alarm begins and ends after ``after_s``, and says the latest numbers meanwhile."""
        self._trouble.see(now, holds=bool(troubles))
        self._calm.see(now, holds=not troubles)
        if self._trouble.lasted(now, after_s) or (troubles and self._alarm is not None):
            self._alarm = f"{scene}: {'; '.join(troubles)}"
        elif self._calm.lasted(now, after_s):
            self._alarm = None
