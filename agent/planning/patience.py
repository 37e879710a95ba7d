"""How long is long enough: the policy of the watch, and what it remembers of one model. Pure, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from agent.planning.scene import Direction

Mode = Literal["off", "alarm", "act"]


@dataclass(frozen=True)
class WatchPolicy:
    """How patient the watch is.

    Attributes:
        mode: ``off`` looks at nothing, ``alarm`` tells, ``act`` also plans again. ``act`` is the default: a box that
            nobody looks at would meet a shortage with the kernel's OOM killer. A switch passes the same gate, canary
            and trial as a deploy, what serves goes on serving until then, and what a person chose is left alone.
        down_after_s: 30 s, as long as systemd-oomd watches memory pressure before it acts
            (``DefaultMemoryPressureDurationSec``): shorter is a spike, longer endangers the neighbours.
        up_after_s: 300 s, as long as a kubelet waits before it believes that pressure is over
            (``--eviction-pressure-transition-period``): better answers can wait, a wrong step up costs two switches.
        up_margin: part of the budget, 0 to 1, that is kept out when a step up is weighed; above a busy box's noise.
        min_dwell_s: 900 s between two switches of which the second leads up: a job that comes every quarter of an
            hour or more often is met by serving the smaller form all the time.
        pause_s, max_pause_s: how long a wish that came to nothing is not repeated at first, and at most.
    """

    mode: Mode = "act"
    down_after_s: float = 30.0
    up_after_s: float = 300.0
    up_margin: float = 0.1
    min_dwell_s: float = 900.0
    pause_s: float = 900.0
    max_pause_s: float = 6 * 3600.0

    def after_s(self, direction: Direction) -> float:
        """Return how long something has to be so before it counts."""
        return self.down_after_s if direction == "down" else self.up_after_s


@dataclass
class Spell:
    """How long something has been so without a break."""

    since: float | None = None

    def see(self, now: float, *, holds: bool) -> None:
        """Take one look: it is so, or it is not."""
        if not holds:
            self.since = None
        elif self.since is None:
            self.since = now

    def lasted(self, now: float, seconds: float) -> bool:
        """Return whether it has been so for ``seconds``."""
        return self.since is not None and now - self.since >= seconds


@dataclass(frozen=True)
class Situation:
    """What a wish is an answer to: where it leads, and what the model may take."""

    direction: Direction
    method: str
    room_bytes: int

    def differs(self, other: Situation, margin: float) -> bool:
        """Return whether ``other`` leads elsewhere, or the room differs by more than ``margin``, 0 to 1."""
        moved = abs(self.room_bytes - other.room_bytes)
        is_same = (self.direction, self.method) == (other.direction, other.method)
        return not is_same or moved > margin * max(self.room_bytes, other.room_bytes)


@dataclass
class Track:
    """What is remembered of one model for as long as the same release serves.

    Attributes:
        release: identifies what is served.
        since: monotonic seconds at which it was seen first.
    """

    release: str
    since: float
    _spells: dict[Direction, Spell] = field(default_factory=dict)
    _failed: Situation | None = None
    _failures: int = 0
    _not_before: float = 0.0
    _away: Spell = field(default_factory=Spell)

    def start_over(self) -> None:
        """Forget how long things have been so; a failure is remembered."""
        self._spells = {}
        self._away = Spell()

    def see(self, now: float, direction: Direction, policy: WatchPolicy, *, holds: bool) -> None:
        """Take one look: there is reason to go that way, or there is none.

        What failed is over once its reason was away for as long as it takes to be believed.
        """
        self._spells.setdefault(direction, Spell()).see(now, holds=holds)
        if self._failed is not None and self._failed.direction == direction:
            self._away.see(now, holds=not holds)
            if self._away.lasted(now, policy.after_s(direction)):
                self._failed = None

    def is_ripe(self, now: float, direction: Direction, policy: WatchPolicy) -> bool:
        """Return whether there was reason to go that way for long enough."""
        if direction == "up" and now - self.since < policy.min_dwell_s:
            return False
        return self._spells.get(direction, Spell()).lasted(now, policy.after_s(direction))

    def may(self, now: float, situation: Situation, policy: WatchPolicy) -> bool:
        """Return whether nothing like it has failed of late."""
        if now < self._not_before:
            return False
        return self._failed is None or situation.differs(self._failed, policy.up_margin)

    def fail(self, now: float, situation: Situation, policy: WatchPolicy) -> None:
        """Remember that a wish in this situation came to nothing; the pause doubles each time, up to its cap."""
        pause_s = min(policy.max_pause_s, policy.pause_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        self._failed, self._not_before, self._away = situation, now + pause_s, Spell()
