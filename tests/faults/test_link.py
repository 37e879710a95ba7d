"""A link that is cut, slow or lossy: an operation goes on where it can, ends once, and is told when the link is back.

Cut means a black hole: connections hang and nothing is refused. While a device is cut off for minutes the broker says
that it is ``offline``; afterwards it is ``online`` under a higher epoch.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness.operator import MODEL, RUNNING
from tests.faults.harness_network import minutes, remote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.files import HostedFile
    from tests.e2e.harness.world import World
    from tests.faults.harness_network import Remote

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PHASES = ("downloading", "planning", "building", "canary", "trial")
FLAP_S, FLAPPING_S = 5.0, 600.0
CUT_S = 150.0
"""Longer than a device and a broker take to notice (keepalive 30 s) and than the will waits (30 s)."""
REACH_S = 400.0
"""How long five devices at once may take to get anywhere on two processor cores."""
SIGNING = threading.Lock()
"""The world's one signer writes into files of one name."""


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def faraway(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """A device beyond links whose faults end with the test that made them."""
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("faraway")
        yield remote(stack, world, folder, "faraway", broker=world.broker, subscriber=world.subscriber)


def host(world: World, name: str) -> HostedFile:
    """Return the demo's checkpoint under another digest: bytes after a zip's end are nobody's."""
    return world.files.host(f"{name}.pt", world.checkpoint.content + name.encode())


def deployed_across_a_cut(device: Remote, world: World, phase: str, seconds: float) -> str:
    """Cut a device off for so long as soon as a deploy of its is in a phase; return how the deploy ended."""
    file = host(world, f"{device.agent.device_id}-{phase}")
    file.bytes_per_s = len(file.content) // 2
    mark = device.operator.mark()
    with SIGNING:
        operation = device.deploy(world, file, gate={"soak_s": 1})
    topic = device.operator.topic(f"op/{operation}")
    device.operator.subscriber.wait(topic, lambda body: body["phase"] == phase, since=mark, timeout_s=REACH_S)
    device.cut_for(seconds)
    ended = device.operator.history(operation, since=mark, timeout_s=REACH_S)
    states = [body["state"] for body in ended]
    assert set(states) - RUNNING == {states[-1]}
    device.operator.event(lambda body: (body["event"], body.get("id")) == ("operation_ended", operation), since=mark)
    operation = device.operator.send("status")
    assert device.operator.result(operation)["state"] == "succeeded"
    return str(states[-1])


@pytest.mark.parametrize("phase", ["downloading", "building"])
def test_a_short_cut_delays_a_deploy_and_nothing_else(faraway: Remote, world: World, phase: str) -> None:
    assert deployed_across_a_cut(faraway, world, phase, 2.0) == "succeeded"
    assert faraway.link.made == 1
    assert faraway.operator.served()["method"] == "nf4"


def test_latency_and_loss_slow_a_deploy_down_and_end_nothing(faraway: Remote, world: World) -> None:
    links = (faraway.link, faraway.files)
    for link in links:
        link.delay_s, link.stall_share = 0.05, 0.05
    try:
        operation = faraway.deploy(world, host(world, "slow"), gate={"soak_s": 1})
        assert faraway.operator.result(operation)["state"] == "succeeded"
        assert faraway.link.made == 1
    finally:
        for link in links:
            link.delay_s, link.stall_share = 0.0, 0.0


@minutes
@pytest.mark.timeout(1800)
def test_a_link_that_flaps_for_ten_minutes_ends_in_what_was_asked_for(
    stack: contextlib.ExitStack, world: World, tmp_path: Path
) -> None:
    """Five seconds with and five without a link, while one deploy and switch after the other is asked for."""
    device = remote(stack, world, tmp_path, "flapping", broker=world.broker, subscriber=world.subscriber)
    mark, ended = device.operator.mark(), threading.Event()

    def flap() -> None:
        while not ended.wait(FLAP_S):
            device.cut_for(FLAP_S)

    flapping = threading.Thread(target=flap, name="flapping")
    flapping.start()
    asked: list[str] = []
    try:
        until = time.monotonic() + FLAPPING_S
        while time.monotonic() < until:
            method = ("nf4-dq", "fp4", "nf4")[len(asked) % 3]
            if not asked:
                asked.append(device.deploy(world, world.checkpoint, gate={"soak_s": 1}))
            else:
                asked.append(device.operator.send("set_method", model=MODEL, method=method, gate={"soak_s": 1}))
            device.operator.history(asked[-1], timeout_s=REACH_S)
            asked.append(device.operator.send("status"))
            device.operator.history(asked[-1], timeout_s=REACH_S)
    finally:
        ended.set()
        flapping.join()
    assert len(asked) > 2 * 10
    for operation in asked:
        states = [body["state"] for body in device.operator.history(operation, since=mark, timeout_s=REACH_S)]
        assert set(states) - RUNNING == {"succeeded"}
    assert world.images.accuracy(device.agent.url, MODEL) > 0.5


@minutes
@pytest.mark.timeout(1800)
def test_a_cut_of_minutes_in_any_phase_is_gone_through(
    stack: contextlib.ExitStack, world: World, tmp_path: Path
) -> None:
    """The cuts of all phases last at the same time, each on a device of its own."""
    devices = {
        phase: remote(stack, world, tmp_path / phase, f"cut-{phase}", broker=world.broker, subscriber=world.subscriber)
        for phase in PHASES
    }
    mark = world.subscriber.mark()
    with ThreadPoolExecutor(len(devices)) as pool:
        cuts = {
            phase: pool.submit(deployed_across_a_cut, device, world, phase, CUT_S) for phase, device in devices.items()
        }
        assert {phase: cut.result() for phase, cut in cuts.items()} == dict.fromkeys(PHASES, "succeeded")
    for device in devices.values():
        states = [body["state"] for body in world.subscriber.on(device.operator.topic("presence"), since=mark)]
        assert states[0] == "offline"
        assert states[-1] == "online"
        assert world.images.accuracy(device.agent.url, MODEL) > 0.5
