"""The watch over the memory budget: when it wants a model planned again, and when it holds its peace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from agent.planning.budget import Budget
from agent.planning.scene import QUALITY, rank
from agent.planning.watch import BudgetWatch, Held, Sight, WatchPolicy, Wish

MIB = 2**20
LOOK_S = 5.0
RESERVE = 500 * MIB
NEEDS = {"nf4": 1000 * MIB, "nf4-dq": 900 * MIB, "fp4-dq": 800 * MIB}
"""What the pretended plan asks for: the first that fits is chosen."""
RESIDENT = {method: needed - 150 * MIB for method, needed in NEEDS.items()}


@dataclass
class Box:
    """A device with one model; ``others`` is what everybody else leaves to the model and the reserve."""

    others: int = RESERVE + 3000 * MIB
    method: str = "nf4"
    is_auto: bool = True
    limit_bytes: int | None = None
    policy: WatchPolicy = field(default_factory=WatchPolicy)
    watch: BudgetWatch = field(default_factory=BudgetWatch)
    now: float = 0.0
    planned: str | None = None
    version: str = "v1"

    def would_choose(self, _model: str, budget: Budget) -> str | None:
        room = budget.available_bytes + RESIDENT[self.method] - budget.reserve_bytes
        if budget.limit_bytes is not None:
            room = min(room, budget.limit_bytes)
        return next((method for method, needed in NEEDS.items() if needed <= room), None)

    def look(self, *, is_quiet: bool = True, others: int | None = None) -> Sight:
        self.now += LOOK_S
        own = RESIDENT[self.method]
        available = (self.others if others is None else others) - own
        budget = Budget(available, RESERVE, "meminfo", 8192 * MIB, self.limit_bytes)
        held = Held(f"{self.version}-{self.method}", self.method, self.planned or self.method, self.is_auto, own)
        return self.watch.observe(self.now, budget, {"kanji": held}, self.would_choose, self.policy, is_quiet=is_quiet)

    def wait(self, seconds: float) -> Wish | None:
        """Look until there is a wish, for at most ``seconds``."""
        for _ in range(round(seconds / LOOK_S)):
            wish = self.look().wish
            if wish is not None:
                return wish
        return None

    def switch(self, method: str) -> None:
        """Let an operation take its time and serve the model by ``method``."""
        for _ in range(6):
            assert self.look(is_quiet=False).wish is None
        self.method = method


SHORT = RESERVE + RESIDENT["nf4"] - 10 * MIB
"""The reserve is broken by 10 MiB, and something smaller would need no more than there is."""
HOPELESS = RESERVE + 700 * MIB


def grown(box: Box) -> Box:
    """Return a box that was switched down, and whose memory has returned since."""
    box.others = SHORT
    assert box.wait(120)
    box.switch("fp4-dq")
    box.others = RESERVE + 3000 * MIB
    return box


def test_a_broken_reserve_leads_down_once_it_lasts() -> None:
    box = Box()
    assert box.wait(600) is None
    box.others, began = SHORT, box.now
    wish = box.wait(600)
    assert wish is not None
    assert (wish.model, wish.method, wish.direction) == ("kanji", "fp4-dq", "down")
    assert box.policy.down_after_s <= box.now - began <= box.policy.down_after_s + 3 * LOOK_S
    assert wish.reason == (
        "for 30 s 490 MiB available according to meminfo, 10.0 MiB less than the reserve of 500 MiB: "
        "kanji could be served by fp4-dq instead of nf4"
    )


def test_a_shortage_that_is_shorter_than_the_hysteresis_leads_nowhere() -> None:
    box = Box()
    box.wait(60)
    for _ in range(20):
        assert [box.look(others=SHORT).wish for _ in range(5)] == [None] * 5
        assert box.wait(60) is None


def test_one_wild_look_in_a_shortage_does_not_start_it_anew() -> None:
    box = Box()
    box.wait(60)
    sights = [box.look(others=RESERVE + 9000 * MIB if number == 4 else SHORT) for number in range(10)]
    assert any(sight.wish for sight in sights)


def test_returned_memory_leads_up_after_its_own_patience_and_the_dwell() -> None:
    box = grown(Box())
    began = box.now
    wish = box.wait(3600)
    assert wish is not None
    assert (wish.method, wish.direction) == ("nf4", "up")
    assert box.now - began >= box.policy.min_dwell_s
    assert "with 10% of the budget to spare" in wish.reason


def test_without_a_dwell_the_way_up_still_takes_its_patience() -> None:
    box = grown(Box(policy=WatchPolicy(min_dwell_s=0.0)))
    began = box.now
    assert box.wait(3600)
    assert 300.0 <= box.now - began <= 300.0 + 4 * LOOK_S


def test_what_would_fit_without_the_margin_only_is_left_alone() -> None:
    box = grown(Box())
    box.others = RESERVE + round(NEEDS["nf4-dq"] / 0.91)
    assert box.wait(4 * 3600) is None
    box.others = RESERVE + round(NEEDS["nf4-dq"] / 0.89)
    wish = box.wait(3600)
    assert wish is not None
    assert wish.method == "nf4-dq"


def test_a_switch_of_ours_is_no_change_of_theirs() -> None:
    """The smaller form gives memory back; that alone never leads up again."""
    box = Box()
    box.others = SHORT
    assert box.wait(120)
    box.switch("fp4-dq")
    assert box.wait(24 * 3600) is None


def test_what_an_operator_chose_is_not_switched_but_the_shortage_is_told() -> None:
    box = Box(is_auto=False)
    box.others = SHORT
    assert box.wait(600) is None
    alarm = box.look().alarm
    assert alarm is not None
    assert "fp4-dq would fit, but an operator chose nf4 for kanji" in alarm


def test_where_nothing_fits_there_is_an_alarm_instead_of_a_wish_and_it_ends_with_the_shortage() -> None:
    box = Box()
    box.wait(60)
    box.others = HOPELESS
    assert box.wait(600) is None
    assert "nothing fits in place of kanji by nf4" in str(box.look().alarm)
    box.others = RESERVE + 3000 * MIB
    assert box.wait(25) is None
    assert box.look().alarm is not None
    box.wait(60)
    assert box.look().alarm is None


def test_alarm_mode_tells_and_off_is_silent() -> None:
    box = Box(policy=WatchPolicy(mode="alarm"))
    box.others = SHORT
    assert box.wait(600) is None
    assert "kanji should go from nf4 to fp4-dq" in str(box.look().alarm)
    box.policy = replace(box.policy, mode="off")
    assert box.look() == Sight()
    box.policy = WatchPolicy()
    assert box.wait(30) is None, "what was seen before it was off must not count"
    assert box.wait(60) is not None


def test_a_configured_budget_that_shrinks_leads_down_and_one_that_was_there_already_does_not() -> None:
    box = Box(limit_bytes=1200 * MIB)
    assert box.wait(3600) is None
    box.limit_bytes = 950 * MIB
    wish = box.wait(120)
    assert wish is not None
    assert (wish.method, wish.direction) == ("nf4-dq", "down")
    assert "memory.budget is 950 MiB" in wish.reason


def test_what_measurement_overruled_is_not_wished_for_again() -> None:
    """The plan said nf4, the gate preferred nf4-dq: that the plan still says nf4 is nothing new."""
    box = Box(method="nf4-dq", planned="nf4")
    assert box.wait(24 * 3600) is None


def test_a_wish_that_came_to_nothing_waits_for_another_situation() -> None:
    box = Box()
    box.others = SHORT
    assert box.wait(120)
    box.switch("nf4")
    assert box.wait(12 * 3600) is None
    assert "kanji should go from nf4 to fp4-dq" in str(box.look().alarm)
    box.others = RESERVE + 3000 * MIB
    box.wait(600)
    box.others = SHORT
    assert box.wait(120) is not None, "the shortage had ended, so this is a new one"


def test_another_method_that_would_fit_is_another_situation_after_the_pause() -> None:
    box = Box()
    box.others = SHORT
    assert box.wait(120)
    box.switch("nf4")
    assert box.wait(600) is None
    needs = dict(NEEDS)
    try:
        NEEDS["nf4-dq"] = 830 * MIB
        wish = box.wait(900)
    finally:
        NEEDS.update(needs)
    assert wish is not None
    assert wish.method == "nf4-dq"


def test_the_pause_after_a_failure_doubles_up_to_its_cap() -> None:
    box = Box(policy=WatchPolicy(pause_s=100.0, max_pause_s=500.0))
    pauses = []
    for _ in range(6):
        wish, began = None, box.now
        while wish is None:
            box.others = RESERVE + 3000 * MIB
            box.wait(60)
            box.others = SHORT
            wish = box.wait(60)
        pauses.append(box.now - began)
        box.switch("nf4")
    expected = [0, 100, 200, 400, 500, 500]
    assert all(low <= pause <= low + 240 for pause, low in zip(pauses, expected, strict=True)), pauses


def test_looks_while_an_operation_is_open_count_for_nothing() -> None:
    box = Box()
    box.wait(60)
    for _ in range(100):
        assert box.look(is_quiet=False, others=HOPELESS) == Sight()
    assert box.wait(60) is None


def test_another_release_of_the_model_starts_with_a_clean_record() -> None:
    box = Box(policy=WatchPolicy(max_pause_s=0.0))
    box.others = SHORT
    assert box.wait(120)
    box.switch("nf4")
    assert box.wait(600) is None
    box.version = "v2"
    assert box.wait(600) is not None


def test_without_a_model_there_is_nothing_to_say() -> None:
    watch, budget = BudgetWatch(), Budget(0, RESERVE, "meminfo", 8192 * MIB)
    for look in range(100):
        assert watch.observe(LOOK_S * look, budget, {}, lambda *_: None, WatchPolicy()) == Sight()


def test_of_two_models_the_larger_goes_first_and_the_other_waits_for_it() -> None:
    watch, budget = BudgetWatch(), Budget(RESERVE - MIB, RESERVE, "meminfo", 8192 * MIB)
    served = {
        "small": Held("a", "nf4", "nf4", is_auto=True, resident_bytes=100 * MIB),
        "large": Held("b", "nf4", "nf4", is_auto=True, resident_bytes=900 * MIB),
    }
    wishes: list[str] = []
    for look in range(40):
        sight = watch.observe(LOOK_S * look, budget, served, lambda *_: "nf4-dq", WatchPolicy(), is_quiet=not wishes)
        wishes += [sight.wish.model] if sight.wish else []
    assert wishes == ["large"]
    served["large"] = replace(served["large"], release="b2", method="nf4-dq", planned="nf4-dq")
    for look in range(40, 60):
        sight = watch.observe(LOOK_S * look, budget, served, lambda *_: "nf4-dq", WatchPolicy())
        wishes += [sight.wish.model] if sight.wish else []
    assert wishes[:2] == ["large", "small"]


@pytest.mark.parametrize("method", ["mixed", "something new"])
def test_a_method_without_a_place_is_neither_better_nor_smaller(method: str) -> None:
    assert not any(rank(method) < rank(other) or rank(method) > rank(other) for other in QUALITY)
