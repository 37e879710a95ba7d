"""``nibblectl`` and a broker that does not let this login hear what it asks for."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from agent.adapters.mqtt_operator import MAX_FILTERS, Messages
from agent.fleet.cli import main
from tests.fakes.refusing import RefusingBroker

if TYPE_CHECKING:
    from click.testing import Result

EVENTS = "edge/v1/+/event"
EVENT = ("edge/v1/box/event", b'{"schema":1,"event":"started","at":"10:00"}')
END_S = 30.0


def run(broker: RefusingBroker, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--port", str(broker.port), *arguments], prog_name="nibblectl")


@pytest.mark.timeout(60)
def test_a_trail_that_may_not_be_heard_ends_with_status_4_instead_of_waiting_for_ever() -> None:
    with RefusingBroker([EVENTS]) as broker:
        done = run(broker, "events", "--follow")
    assert (done.exit_code, done.stdout) == (4, "")
    where = f"broker 127.0.0.1:{broker.port}"
    assert done.stderr.startswith(f"nibblectl: {where} does not let this login hear {EVENTS}: Not authorized\n")


@pytest.mark.timeout(60)
def test_a_trail_that_may_be_heard_is_shown() -> None:
    with RefusingBroker(says=[EVENT]) as broker:
        done = run(broker, "events", "--follow", "--count", "1")
    assert (done.exit_code, done.stdout) == (0, "10:00 box started\n")


@pytest.mark.timeout(60)
def test_a_refused_filter_takes_nothing_from_commands_that_hear_the_others() -> None:
    presence = ("edge/v1/box/presence", b'{"schema":1,"state":"online"}')
    with RefusingBroker(["edge/v1/+/health"], [presence]) as broker:
        done = run(broker, "devices")
    assert (done.exit_code, done.stdout.splitlines()[1].split()[:2]) == (0, ["box", "online"])


@pytest.mark.timeout(60)
def test_each_filter_is_refused_by_its_name_also_in_a_second_subscription() -> None:
    filters = [f"edge/v1/box/{number}" for number in range(2 * MAX_FILTERS)]
    refused = [filters[1], filters[-1]]
    told: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    with RefusingBroker(refused) as broker, Messages("127.0.0.1", broker.port) as messages:
        messages.on_refused = lambda each, reason: told.put((each, reason))
        with messages.hear(*filters):
            assert [told.get(timeout=END_S) for _ in refused] == [(each, "Not authorized") for each in refused]
        assert told.empty()
