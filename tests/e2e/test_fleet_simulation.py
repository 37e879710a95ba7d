"""A small simulated fleet: what ``make fleet-sim`` measures holds for it, and its bad devices fail as real ones do."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.simulation.campaign import (
    CONTENT,
    FIRST,
    GROUP,
    MEMORY,
    MODEL,
    NEXT,
    URL,
    Figures,
    converge,
    growth,
    restart_broker,
    roll_out,
)
from tests.simulation.fleet import Fleet, fleet
from tests.simulation.sizes import RETAINED, Weight
from tests.simulation.sizes import fleet as sum_up

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

COUNT, BAD, TIMEOUT_S = 12, "sim-0007", 120.0
"""One of a dozen is more than the rollout allows; which wave it is in, a hash says."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as disks, fleet(COUNT, tmp_path) as found:
        files = {URL: CONTENT.hex()}
        found.start(Path(disks), groups=[GROUP], files=files, bad=[BAD], method=NEXT, interval_s=5.0, soak_s=0.1)
        found.observer.wait(lambda: found.online() and len(found.observer.reported) == COUNT, TIMEOUT_S, "all there")
        yield found
    assert {body["state"] for body in found.observer.presence.values()} == {"offline"}


def test_it_converges_without_an_operator_and_outlives_the_broker(small: Fleet, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        small.observer.wait(lambda: False, 0.01, "nothing")
    _, messages = converge(small, 1)
    assert messages >= COUNT
    assert roll_out(small, tmp_path)["touched"] < COUNT
    whole = Fleet(tuple(name for name in small.names if name != BAD), small.broker, small.observer)
    converge(whole, 2, NEXT)

    def missing() -> dict[str, str]:
        told = small.observer.reported[BAD].get("desired") or {"missing": {}}
        return {subject: each["state"] for subject, each in told["missing"].items()}

    small.observer.wait(lambda: missing() == {MODEL: "failed"}, TIMEOUT_S, "the end of the bad device")
    assert small.observer.reported[BAD]["models"][MODEL]["method"] == FIRST
    before = small.epochs()
    restart_broker(small)
    assert all(epoch > before[name] for name, epoch in small.epochs().items())


def test_growth_compares_what_a_device_costs() -> None:
    few = Figures(10, 1.0, 2.0, 100, 1.0, 4.0, 0.02, 0.001, 1.0, 1.0, 40, 1.0, 1)
    many = Figures(1000, 9.0, 90.0, 10_000, 9.0, 400.0, 4.0, 0.1, 1.0, 1.0, 4000, 1.0, 1)
    assert growth(few, many) == pytest.approx(
        {"converge_messages": 1, "idle_messages_per_s": 1, "idle_cpu": 2, "idle_broker_cpu": 1, "retained": 1}
    )


def test_a_large_fleet_is_the_sum_of_its_devices() -> None:
    weights = {kind: Weight(1, 1000) for kind in (*RETAINED, "op", "health", "telemetry")}
    rows = dict(sum_up(weights, {"op": Weight(18, 1000)}))
    assert rows["retained messages, 2 operations a week"] == "500,000"
    assert rows["retained bytes"] == f"{5 * 1000 * 100_000 / 2**30:.2f} GiB"
    assert rows["messages/s while all are changed within 1 h"] == f"{2 * 100_000 / 30 + 18 * 100_000 / 3600:,.0f}"
