"""Memory that others take between the plan and the load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.planning.budget import Budget
from tests.fakes.device import MIB

if TYPE_CHECKING:
    import pytest

    from tests.fakes.box import Box

RESERVE = 512 * MIB
HELD = 1200
"""What the simulated builder says that every release takes."""


class Shrinking:
    """Looks at memory as the plan finds it, and as it is from the next look on."""

    def __init__(self, *available_bytes: int) -> None:
        self._left = list(available_bytes)

    def __call__(self) -> Budget:
        now = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        return Budget(now, RESERVE, "meminfo", 8192 * MIB)


def needed(box: Box, method: str) -> int:
    """Return what a switch to the method is estimated at, with all the memory that there is."""
    box.send("set_method", {"id": "roomy", "model": "kanji", "method": method})
    box.settle()
    estimate = box.report("roomy")["decision"]["estimates"][method]
    return int(estimate["weights_bytes"] + estimate["working_bytes"])


def switch(box: Box, method: str, monkeypatch: pytest.MonkeyPatch, *available_bytes: int) -> None:
    """Switch while the memory shrinks."""
    monkeypatch.setattr(box.device, "budget", Shrinking(*available_bytes))
    box.send("set_method", {"id": "tight", "model": "kanji", "method": method})
    box.settle()


def test_a_release_that_no_longer_fits_is_refused_before_the_server_touches_it(
    serving_box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = needed(serving_box, "fp4") - HELD
    before = serving_box.serving()
    switch(serving_box, "int8", monkeypatch, 4096 * MIB, RESERVE // 2 + least // 2)
    report = serving_box.report("tight")
    assert (report["state"], report["error"]["code"]) == ("rolled_back", "insufficient_memory")
    assert report["error"]["detail"].startswith("memory shrank since this was planned: int8 needs")
    assert report["error"]["retryable"]
    assert serving_box.serving() == before


def test_a_release_that_no_longer_fits_beside_the_old_one_takes_its_place(
    serving_box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = needed(serving_box, "fp4")
    switch(serving_box, "nf4", monkeypatch, 4096 * MIB, RESERVE // 2 + exact - HELD)
    report = serving_box.report("tight")
    assert (report["state"], report["decision"]["admission"]) == ("succeeded", "unload_first")


def test_a_few_pages_that_others_take_change_nothing(serving_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = needed(serving_box, "fp4")
    switch(serving_box, "nf4", monkeypatch, RESERVE + exact, RESERVE + exact - 100 * MIB)
    report = serving_box.report("tight")
    assert (report["state"], report["decision"]["admission"]) == ("succeeded", "side_by_side")
