"""A device's place in a rollout that devices carry out by themselves: one formula, told in the documents."""

from __future__ import annotations

import hashlib
import itertools
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from agent.contract.halt import MAX_REASON, Halt, Halts, parse
from agent.contract.staged import MAX_STAGES, Rollout, Turn, delay_share, position
from agent.fleet.stages import duration_s, stages

START = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
STAGES = [{"percent": 5, "after_s": 0}, {"percent": 25, "after_s": 3600}, {"percent": 100, "after_s": 14_400}]


def rollout(**fields: Any) -> Rollout:
    return Rollout.model_validate({"id": "r", **fields})


def with_place(low: float, high: float) -> str:
    """Return a device whose position lies between two percentages."""
    return next(name for name in (f"box-{number}" for number in range(10_000)) if low <= position("r", name) < high)


def test_the_lot_is_what_the_documents_say() -> None:
    digits = hashlib.sha256(b"lab-8\0box-17").hexdigest()
    assert position("lab-8", "box-17") == int(digits[:13], 16) / 16**13 * 100
    assert delay_share("lab-8", "box-17") == int(digits[13:26], 16) / 16**13
    assert round(position("lab-8", "box-17"), 3) == 50.431


def test_no_device_is_beyond_a_hundred_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.contract.staged.lot", lambda _rollout, _device: "f" * 64)
    assert 99.9 < position("r", "last") < 100
    assert delay_share("r", "last") < 1
    assert rollout(percent=100).turn("last").percent == 100


def test_a_percentage_alone_needs_no_time() -> None:
    assert rollout(percent=25).turn(with_place(0, 25)).percent == 25
    assert rollout(percent=25).turn(with_place(25, 100)) == Turn(position("r", with_place(25, 100)), None, None)
    assert rollout(percent=25).percent_at(None) == 25
    assert rollout(percent=0).turn("anybody").percent is None


@pytest.mark.parametrize(
    ("low", "high", "percent", "after_s"), [(0, 5, 5, 0), (5, 25, 25, 3600), (25, 100, 100, 14_400)]
)
def test_a_device_joins_with_the_first_stage_that_reaches_it(
    low: float, high: float, percent: float, after_s: float
) -> None:
    turn = rollout(start=START, stages=STAGES).turn(with_place(low, high))
    assert (turn.percent, turn.at) == (percent, START + timedelta(seconds=after_s))


def test_within_a_stage_each_device_waits_its_own_share_of_the_spread() -> None:
    spread = rollout(start=START, stages=STAGES, spread_s=600)
    name = with_place(5, 25)
    assert spread.turn(name).at == START + timedelta(seconds=3600 + 600 * delay_share("r", name))
    waits = sorted(delay_share("r", f"box-{number}") for number in range(1000))
    assert max(after - before for before, after in itertools.pairwise(waits)) < 0.02


def test_the_percentage_in_force_follows_the_time() -> None:
    staged = rollout(start=START, stages=STAGES)
    seconds = (-1, 0, 3599, 3600, 14_400, 99_999)
    assert [staged.percent_at(START + timedelta(seconds=each)) for each in seconds] == [0, 5, 5, 25, 100, 100]
    assert staged.percent_at(None) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "either percent or stages"),
        ({"percent": 5, "start": START, "stages": STAGES}, "either percent or stages"),
        ({"stages": STAGES}, "counted from start"),
        ({"percent": 5, "spread_s": 60}, "counted from start"),
        ({"start": START, "stages": STAGES[::-1]}, "goes back"),
        ({"start": START, "stages": []}, "at least 1 item"),
        ({"start": START, "stages": STAGES[:1] * (MAX_STAGES + 1)}, "at most 32 items"),
        ({"percent": 101}, "less than or equal to 100"),
        ({"percent": 5, "start": datetime(9999, 12, 1, tzinfo=timezone.utc)}, "too far ahead"),
        ({"percent": 5, "start": "2026-01-01T00:00:00"}, "timezone"),
        ({"id": "a/b", "percent": 5}, "should match pattern"),
    ],
)
def test_a_rollout_that_is_not_clear_is_refused_with_what_is_missing(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        rollout(**fields)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), ("1.5m", 90), ("4h", 14_400), ("1d", 86_400)]
)
def test_times_are_written_as_people_do(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


def test_stages_are_written_in_one_word() -> None:
    assert stages("5%@0, 25%@1h,100@4h") == STAGES
    for wrong in ("5", "5%@", "x%@1h", "5%@1w", "", "5%@0,,100%@1h"):
        with pytest.raises(ValueError, match="expected"):
            stages(wrong)


def test_whatever_is_not_empty_halts() -> None:
    assert parse(b"") is None
    assert parse(b'{"schema": 1, "generation": 3, "reason": "wrong labels"}') == Halt(
        generation=3, reason="wrong labels"
    )
    for payload, words in (
        (b"stop!", "not JSON"),
        (b"{}", "schema"),
        (b'{"schema": 2}', "schema"),
        (b'{"schema": 1, "generation": "3"}', "generation"),
        (b"\xff", "not UTF-8"),
    ):
        found = parse(payload)
        assert found is not None
        assert (found.generation, found.covers(2**52)) == (None, True)
        assert found.reason.startswith("a halt that cannot be read: ")
        assert words in found.reason
    long = parse(b'{"schema": 1, "reason": "%s"}' % (b"x" * 5000))
    assert long is not None
    assert len(long.reason) == MAX_REASON


def test_a_halt_covers_its_generation_and_those_before() -> None:
    assert [Halt(generation=3).covers(number) for number in (0, 3, 4)] == [True, True, False]


def test_an_empty_message_lifts_what_no_key_signed() -> None:
    plain, signed = Halt(reason="plain"), Halt(generation=4, reason="signed")
    assert not Halts().after(plain, is_signed=False).after(None, is_signed=False)
    kept = Halts().after(signed, is_signed=True)
    for other in (None, Halt(generation=0), Halt(reason="another")):
        assert kept.after(other, is_signed=False).after(None, is_signed=False) == kept
    assert kept.covering(4) == signed
    assert kept.covering(5) is None
    assert kept.after(plain, is_signed=False).covering(5) == plain


def test_a_signed_halt_never_goes_back_and_one_for_every_generation_stays_liftable() -> None:
    kept = Halts().after(Halt(generation=4), is_signed=True)
    assert kept.after(Halt(generation=2), is_signed=True) == kept
    assert kept.after(Halt(generation=6), is_signed=True).covering(6) is not None
    everything = Halts().after(Halt(), is_signed=True)
    assert everything.covering(2**52) is not None
    assert not everything.after(None, is_signed=False)


def test_halts_come_back_as_they_were_written() -> None:
    halts = Halts(Halt(reason="a"), Halt(generation=4, reason="b"))
    assert Halts.from_json(halts.to_json()) == halts
    assert Halts.from_json(Halts().to_json()) == Halts()
