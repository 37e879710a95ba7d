"""A fleet is heard whole, also from a broker that hands over less than it keeps."""

from __future__ import annotations

import contextlib
import queue
from typing import TYPE_CHECKING

import pytest
from paho.mqtt.client import topic_matches_sub

from agent.adapters.mqtt_operator import Heard
from agent.fleet import gather
from agent.fleet.gather import Fleet
from tests.fakes import fleet

if TYPE_CHECKING:
    from collections.abc import Iterator


class Forgetful:
    """Hands over at most ``most`` retained messages per subscription, the others never."""

    def __init__(self, kept: dict[str, bytes], most: int) -> None:
        self._kept = kept
        self._most = most
        self.asked: list[tuple[str, ...]] = []

    @contextlib.contextmanager
    def hear(self, *filters: str) -> Iterator[queue.SimpleQueue[Heard]]:
        self.asked.append(filters)
        inbox: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        for each in filters:
            matching = [topic for topic in self._kept if topic_matches_sub(each, topic)]
            for topic in matching[: self._most]:
                inbox.put(Heard(topic, self._kept[topic], is_retained=True))
        yield inbox


@pytest.fixture
def kept() -> dict[str, bytes]:
    bodies = {"presence": fleet.presence(), "reported": fleet.reported()}
    topics: dict[str, bytes] = {}
    for number in range(10):
        topics |= dict(fleet.said(f"box-{number}", dict(bodies)))
    return topics


def test_what_was_left_out_of_a_known_device_is_asked_for_topic_by_topic(
    kept: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "AT_ONCE", 4)
    for number in range(6):
        kept[f"edge/v1/box-{number}/reported"] = kept.pop(
            f"edge/v1/box-{number}/reported"
        )  # the last to be handed over
    broker = Forgetful(kept, most=8)
    found = Fleet(broker, fleet.PREFIX)  # type: ignore[arg-type]
    with found.heard("presence", "reported"):
        pass
    assert [device.name for device in found.view] == [f"box-{number}" for number in range(10)]
    assert found.view.gaps(["presence", "reported"]) == []
    assert broker.asked == [
        ("edge/v1/+/presence", "edge/v1/+/reported"),
        ("edge/v1/box-4/reported", "edge/v1/box-5/reported", "edge/v1/box-8/presence", "edge/v1/box-9/presence"),
    ]


def test_of_a_device_that_is_named_only_its_own_topics_are_asked_for(kept: dict[str, bytes]) -> None:
    broker = Forgetful(kept, most=8)
    found = Fleet(broker, fleet.PREFIX, ["box-9"])  # type: ignore[arg-type]
    with found.heard("presence", "reported", live=["health"]):
        pass
    assert [device.name for device in found.view] == ["box-9"]
    assert broker.asked == [("edge/v1/box-9/presence", "edge/v1/box-9/reported", "edge/v1/box-9/health")]
