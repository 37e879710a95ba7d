"""Who follows a group's document, and when: a rollout that the devices carry out by themselves. Pure.

Each device draws a lot: the 64 hexadecimal digits of ``sha256(rollout id, a zero byte, device id)``. The first 13 of
them, divided by 16^13, are its position, from 0 up to but not 100 percent; the next 13 are its share of ``spread_s``,
drawn independently, so that those of one stage do not all come at its begin. A device is in as soon as the percent in
force lies above its position: who is in at 5 percent is in at 25. Nothing else is drawn, so every machine that knows
the two ids knows when the device joins.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.contract.topics import Id
from agent.contract.wire import Moment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

MAX_STAGES = 32
YEAR_S = 366 * 86_400
_DIGITS = 13
"""Of the lot, for each of the two shares: 52 bits, which a float holds exactly."""
Percent = Annotated[float, Field(ge=0, le=100)]


def lot(rollout: str, device: str) -> str:
    """Return the lot of a device in a rollout, 64 hexadecimal digits; lots are ordered as the positions are."""
    return hashlib.sha256(f"{rollout}\0{device}".encode()).hexdigest()


def position(rollout: str, device: str) -> float:
    """Return where a device stands in a rollout, in percent: 0 included, 100 not."""
    return 100 * _share(lot(rollout, device)[:_DIGITS])


def delay_share(rollout: str, device: str) -> float:
    """Return which part of ``spread_s`` a device waits: 0 included, 1 not."""
    return _share(lot(rollout, device)[_DIGITS : 2 * _DIGITS])


def _share(digits: str) -> float:
    return float(int(digits, 16) / 16**_DIGITS)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Stage(_Part):
    """From when on how many take part.

    Attributes:
        percent: of the devices, 0 to 100.
        after_s: seconds after ``start``.
    """

    percent: Percent
    after_s: Annotated[float, Field(ge=0, le=YEAR_S)] = 0


@dataclass(frozen=True)
class Turn:
    """When a device joins.

    Attributes:
        position: where it stands, in percent.
        percent: of the first stage that reaches it; None if none does.
        at: when it joins; None if that is at once, or never.
    """

    position: float
    percent: float | None
    at: datetime | None


class Rollout(_Part):
    """How a document reaches the devices of its group, without an operator.

    Attributes:
        id: what the lots are drawn by. A new document with the same id draws the same ones.
        percent: of the devices; those beyond it keep the document that they have. In place of ``stages``.
        start: what the seconds of stages, and of the spread, are counted from.
        stages: in the order of their time, none with less percent than the one before.
        spread_s: seconds over which the devices of a stage join.
    """

    id: Id
    percent: Percent | None = None
    start: Moment | None = None
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=MAX_STAGES)] | None = None
    spread_s: Annotated[float, Field(ge=0, le=YEAR_S)] = 0

    @model_validator(mode="after")
    def _is_clear(self) -> Rollout:
        if (self.percent is None) == (self.stages is None):
            raise ValueError("either percent or stages says how many take part")
        if self.start is None and (self.stages is not None or self.spread_s > 0):
            raise ValueError("stages and spread_s are counted from start, which is missing")
        for before, after in zip(self.each(), tuple(self.each())[1:], strict=False):
            if after.percent < before.percent or after.after_s < before.after_s:
                raise ValueError(
                    f"the stage at {after.after_s:g} s with {after.percent:g} % goes back behind the one before"
                )
        if self.start is not None:
            try:
                self.start + timedelta(seconds=2 * YEAR_S)
            except OverflowError:
                raise ValueError("start is too far ahead") from None
        return self

    def turn(self, device: str) -> Turn:
        """Return when ``device`` joins."""
        return _turn(self, device)

    def percent_at(self, now: datetime | None) -> float | None:
        """Return the percent in force; None if that has a time, and ``now`` is None: it is not known."""
        if self.start is None:
            return self.percent
        if now is None:
            return None
        begun = [each.percent for each in self.each() if now >= self.start + timedelta(seconds=each.after_s)]
        return begun[-1] if begun else 0.0

    def each(self) -> Iterator[Stage]:
        """Yield the stages; a percent alone is one."""
        if self.stages is not None:
            yield from self.stages
        elif self.percent is not None:
            yield Stage(percent=self.percent)


@functools.lru_cache(maxsize=64)  # a device that waits looks at its turn every second
def _turn(rollout: Rollout, device: str) -> Turn:
    place = position(rollout.id, device)
    stage = next((each for each in rollout.each() if place < each.percent), None)
    if stage is None or rollout.start is None:
        return Turn(place, stage.percent if stage else None, None)
    wait_s = stage.after_s + rollout.spread_s * delay_share(rollout.id, device)
    return Turn(place, stage.percent, rollout.start + timedelta(seconds=wait_s))
