"""A bridge between two brokers that take no message here and there."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from agent.adapters.mqtt_operator import BrokerError, Heard, RefusedMessageError
from agent.contract.topics import Topics
from agent.fleet.bridge import running
from agent.fleet.bridge.requests import Command, Foreign
from agent.fleet.bridge.running import Bridge
from tests.fakes import fleet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.fleet.bridge.requests import Out
    from agent.fleet.view import Device


class Side:
    """A broker that refuses what goes to some topics."""

    def __init__(self, refuses: Sequence[str] = ()) -> None:
        self.refuses = refuses
        self.published: list[str] = []

    def publish(self, topic: str, _payload: bytes, *, retain: bool = False) -> None:  # noqa: ARG002 - as the real one
        if topic in self.refuses:
            raise RefusedMessageError(f"broker refuses a message on {topic}: Not authorized")
        self.published.append(topic)


class Teller:
    """A machine that has one message for each side, over and over."""

    def __init__(self, device: Device) -> None:
        self.device = device

    @property
    def root(self) -> str:
        return f"other/{self.device.name}/"

    @property
    def filters(self) -> tuple[str, ...]:
        return (f"{self.root}#",)

    def take(self, topic: str, payload: bytes, now_s: float, *, is_retained: bool = False) -> None:
        """It listens to nothing."""

    def act(self, _now_s: float) -> list[Out]:
        name = self.device.name
        return [Command(name, "status", {}, ""), Foreign(f"{self.root}state", b"{}")]


def command(name: str) -> str:
    return Topics("edge/v1", name).command("status")


def bridge(told: list[str]) -> Bridge:
    made = Bridge("edge/v1", (), Teller, told.append)
    for name in ("box-1", "box-2"):
        made._hear(Heard(f"edge/v1/{name}/presence", json.dumps(fleet.presence()).encode(), is_retained=True))
    return made


@pytest.mark.parametrize("refused", [command("box-1"), "other/box-1/state"])
def test_a_device_for_which_a_broker_takes_no_message_holds_up_no_other(refused: str) -> None:
    told: list[str] = []
    ours, theirs, made = Side([refused]), Side([refused]), bridge(told)
    for _ in range(2):
        made._act(cast("Any", ours), cast("Any", theirs))
    assert ours.published.count(command("box-2")) == theirs.published.count("other/box-2/state") == 2
    assert ours.published.count(command("box-1")) <= 1
    assert [line for line in told if "is left out" in line] == [
        f"box-1 is left out for 600 s: broker refuses a message on {refused}: Not authorized"
    ]


def test_a_connection_that_is_gone_ends_it_for_all() -> None:
    class Gone(Side):
        def publish(self, topic: str, _payload: bytes, *, retain: bool = False) -> None:  # noqa: ARG002
            raise BrokerError(f"did not acknowledge a message on {topic}")

    with pytest.raises(BrokerError, match="did not acknowledge"):
        bridge([])._act(cast("Any", Gone()), cast("Any", Side()))


def test_who_was_left_out_is_taken_up_again_by_beginning_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Open(Side):
        was_lost = False

        def hear(self, *_filters: str, inbox: Any) -> Any:
            inbox.put(Heard("edge/v1/box-1/presence", json.dumps(fleet.presence()).encode(), is_retained=True))
            return contextlib.nullcontext()

    for name in ("FIRST_S", "QUIET_S", "TICK_S", "LEFT_OUT_S"):
        monkeypatch.setattr(running, name, 0.0)
    told: list[str] = []
    with pytest.raises(BrokerError, match="taken up again"):
        Bridge("edge/v1", (), Teller, told.append).run(cast("Any", Open([command("box-1")])), cast("Any", Open()))
    assert any("box-1 is left out" in line for line in told)


class Hearer(Teller):
    """A machine that writes down what it hears, and counts how often its root is asked for."""

    asked = 0

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.heard: list[str] = []

    @property
    def root(self) -> str:
        Hearer.asked += 1
        return super().root

    def take(self, topic: str, payload: bytes, now_s: float, *, is_retained: bool = False) -> None:
        del payload, now_s, is_retained
        self.heard.append(topic)


def test_a_message_reaches_the_machine_on_whose_root_it_lies_without_a_look_at_the_others() -> None:
    machines: list[Hearer] = []

    def make(device: Device) -> Hearer:
        machines.append(Hearer(device))
        return machines[-1]

    made = Bridge("edge/v1", (), make, lambda _line: None)
    for number in range(100):
        topic = f"edge/v1/box-{number}/presence"
        made._hear(Heard(topic, json.dumps(fleet.presence()).encode(), is_retained=True))
    Hearer.asked = 0
    for topic in ("other/box-1/state", "other/box-10/a//b", "other/box-1000/state", "other/box-1"):
        made._hear(Heard(topic, b"{}", is_retained=False))
    assert [(each.device.name, each.heard) for each in machines if each.heard] == [
        ("box-1", ["other/box-1/state"]),
        ("box-10", ["other/box-10/a//b"]),
    ]
    assert Hearer.asked == 0
