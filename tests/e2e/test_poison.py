"""Models that pass the builder and go wrong when they serve: each is caught, and what served before goes on."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.e2e import poison
from tests.e2e.harness.inference import ask
from tests.e2e.harness.operator import MODEL

pytest.importorskip("torch", reason="these devices serve real models")
from tests.torture import invariants
from tests.torture.rig import Rig
from tests.torture.surroundings import surroundings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.torture.rig import JsonObject

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SOAK_S = 3.0
"""Longer than the time bomb's second: 30 s of the field in a test that takes three."""
LATENCY_MS = 100.0


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A device with the plug-in, serving a sound model of its type."""
    root = tmp_path_factory.mktemp("poison")
    poison.install(root / "site")
    with pytest.MonkeyPatch.context() as patch, surroundings(root / "world") as world:
        patch.syspath_prepend(root / "site")
        rig = Rig(world, "poisoned")
        rig.agent.environment["PYTHONPATH"] += os.pathsep + str(root / "site")
        rig.boot()
        try:
            assert deploy(rig, "sound")["state"] == "succeeded"
            yield rig
        finally:
            rig.close()


def deploy(rig: Rig, kind: str, *, traffic: bool = False, **gate: float) -> JsonObject:
    """Deploy a checkpoint and check the invariants; with ``traffic`` marked images are asked about meanwhile."""
    served, _records = invariants.journal_of(rig) if (rig.state_dir / "journal.db").exists() else (None, {})
    file = rig.world.files.host(f"{kind}.pt".replace(" ", "-"), poison.checkpoint(kind))
    mark = rig.operator.mark()
    operation = rig.operator.deploy(
        rig.operator.manifest(file), gate={"soak_s": SOAK_S, "min_agreement": 0.5, **gate}, method="fp16"
    )
    done = threading.Event()
    asking = threading.Thread(target=_ask_on, args=(rig, done), daemon=True)
    if traffic:
        asking.start()
    ended = rig.end_of(operation, mark)
    done.set()
    if traffic:
        asking.join()
    invariants.check(rig, operation, mark, served["current"]["id"] if served else None)
    return ended


def _ask_on(rig: Rig, done: threading.Event) -> None:
    marked = rig.world.images.copy()
    marked[:, 0, 0, 0] = poison.MARK
    while not done.wait(0.05):
        with contextlib.suppress(OSError):  # a server that is being replaced
            ask(rig.agent.url, MODEL, marked)


def test_a_model_that_crashes_at_its_first_real_input_is_caught_by_the_canary(rig: Rig) -> None:
    ended = deploy(rig, "abort")
    assert (ended["state"], ended["error"]["phase"]) == ("rolled_back", "canary")


def test_a_model_that_crashes_some_time_later_is_caught_by_the_trial(rig: Rig) -> None:
    ended = deploy(rig, "time bomb")
    assert (ended["state"], ended["error"]["phase"]) == ("rolled_back", "trial")


def test_answers_that_are_not_finite_on_the_gate_s_data_are_caught_by_the_canary(rig: Rig) -> None:
    ended = deploy(rig, "nan on real")
    assert (ended["state"], ended["error"]["phase"]) == ("rolled_back", "canary")
    assert "not finite" in ended["error"]["detail"]


def test_answers_that_are_not_finite_on_some_live_input_only_are_caught_by_the_trial(rig: Rig) -> None:
    ended = deploy(rig, "nan on marked", traffic=True)
    assert (ended["state"], ended["error"]["phase"]) == ("rolled_back", "trial")
    assert "not finite" in ended["error"]["detail"]


def test_a_model_that_loses_the_device_ends_its_server_and_what_served_before_is_back(rig: Rig) -> None:
    since = rig.agent.mark()
    ended = deploy(rig, "lost device", traffic=True)
    assert (ended["state"], ended["error"]["phase"]) == ("rolled_back", "trial")
    rig.agent.logged("device_lost", since=since)
    rig.agent.logged("server_started", since=since)


def test_a_model_a_hundred_times_slower_is_caught_by_the_canary_though_nobody_gave_a_limit(rig: Rig) -> None:
    ended = deploy(rig, "slow")
    assert (ended["state"], ended["error"]["phase"]) == ("rolled_back", "canary")
    assert "times as long" in ended["error"]["detail"]


def test_a_limit_that_was_given_is_judged_as_well(rig: Rig) -> None:
    ended = deploy(rig, "slow", max_latency_ms=LATENCY_MS, max_slowdown=10_000.0)
    assert (ended["state"], ended["error"]["phase"]) == ("rolled_back", "canary")
    assert f"at most {LATENCY_MS} ms demanded" in ended["error"]["detail"]


def test_a_sound_model_is_still_taken_after_all_of_them(rig: Rig) -> None:
    mark = rig.operator.mark()
    assert rig.end_of(rig.deploy(), mark)["state"] == "succeeded"  # the demo's checkpoint, of another type
