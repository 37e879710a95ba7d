"""The world of the end-to-end tests: one broker, one file server, one key.

Modules that need a device in a state of its own start one; the others share one that serves a model.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness.device import Agent
from tests.e2e.harness.files import FileServer
from tests.e2e.harness.inference import Images
from tests.e2e.harness.mqtt import Broker, Subscriber
from tests.e2e.harness.operator import Operator
from tests.e2e.harness.signing import Signer
from tests.e2e.harness.tools import OF_A_FLEET, require
from tests.e2e.harness.world import SERVED_SEQUENCE, Device, World
from tests.fakes.obedient import FakeFleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.harness.world import StartDevice

ROWS = 96


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, kanji: Path) -> Iterator[World]:
    for tool in OF_A_FLEET:
        require(tool)
    keys_dir, private = tmp_path_factory.mktemp("trust.d"), tmp_path_factory.mktemp("private")
    with contextlib.ExitStack() as stack:
        broker = Broker(tmp_path_factory.mktemp("broker"))
        stack.callback(broker.stop)
        broker.start()
        subscriber = Subscriber(broker.port)
        stack.callback(subscriber.close)
        files = FileServer()
        stack.callback(files.close)
        yield World(
            broker=broker,
            subscriber=subscriber,
            files=files,
            signer=Signer(keys_dir, private, "operator"),
            keys_dir=keys_dir,
            checkpoint=files.host("checkpoint_best.pt", (kanji / "checkpoint_best.pt").read_bytes()),
            dataset=files.host("evaluation.safetensors", (kanji / "evaluation.safetensors").read_bytes()),
            images=Images(kanji / "evaluation.safetensors", ROWS),
        )


@pytest.fixture(scope="session")
def start_device(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartDevice]:
    """Start a device of that name; it is ended with the session."""
    with contextlib.ExitStack() as stack:

        def start(name: str, *, module: str = "agent", environment: dict[str, str] | None = None) -> Device:
            folder = tmp_path_factory.mktemp(name)
            agent = Agent(name, folder, world.broker.port, world.keys_dir, module, environment or {})
            operator = Operator(name, world.broker.port, world.subscriber, world.signer, world.dataset)
            stack.callback(agent.close)
            agent.start()
            operator.await_online()
            return Device(agent, operator)

        yield start


@pytest.fixture
def fleet(port: int, boxes: dict[str, dict[str, str]]) -> Iterator[FakeFleet]:
    """The devices in the module's ``boxes``, labels by name; they serve version 1 and are gone with the test."""
    fleet = FakeFleet(port)
    for name, labels in boxes.items():
        fleet.add(name, labels=labels)
    yield fleet
    fleet.clear(fleet.boxes)
    fleet.close()


@pytest.fixture
def desk(request: pytest.FixtureRequest, tmp_path: Path, port: int) -> Any:
    """The operator's machine, as the module's ``Desk`` has it."""
    return request.module.Desk(tmp_path, port)


@pytest.fixture(scope="session")
def serving_device(start_device: StartDevice, world: World) -> Device:
    """A device whose clock counts as disciplined, with a model that serves; every test leaves it serving that model."""
    device = start_device("serving", module="tests.e2e.harness.synchronised_agent")
    manifest = device.operator.manifest(world.checkpoint, version="good", sequence=SERVED_SEQUENCE)
    assert device.operator.result(device.operator.deploy(manifest, method="nf4"))["state"] == "succeeded"
    return device
