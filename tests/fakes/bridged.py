"""A bridge between a device with the real engine and another system's world, turn by turn, with a clock of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agent.contract.topics import Topics
from agent.fleet.bridge.aws_machine import ThingJobs
from agent.fleet.bridge.requests import Command, Foreign
from agent.fleet.bridge.thin_edge import EntityCommands, EntityTopics
from agent.fleet.view import FleetView
from tests.fakes import fleet
from tests.fakes.aws_jobs import JobsService
from tests.fakes.box import TOPICS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.fleet.bridge.requests import Out
    from agent.fleet.bridge.running import Machine
    from tests.fakes.box import Box

JsonObject = dict[str, Any]
MAX_TURNS = 500
THING = "line-3-box-1"


class Bridged:
    """The device's side of a bridge.

    Args:
        box: the device.
    """

    def __init__(self, box: Box) -> None:
        self.box = box
        self.now_s = 0.0
        self.is_online = True
        self.sent: list[Command] = []
        self.notes: list[str] = []
        self._position = 0
        self._view = FleetView(TOPICS.prefix)
        self.restart()

    def restart(self) -> None:
        """End the bridge where it stands, and begin it again with what the broker retains."""
        self._view = FleetView(TOPICS.prefix)
        self._position = len(self.box.broker.log)
        for report in {report.topic: report for report in self.box.broker.log if report.retain}.values():
            self._view.take(report.topic, report.payload, 0.0)
        self.turn(is_online=self.is_online)
        self.machine = self.make()

    def turn(self, *, is_online: bool) -> None:
        """Let the device come or go."""
        self.is_online = is_online
        body = fleet.presence("online" if is_online else "offline")
        self._view.take(TOPICS.presence, json.dumps(body).encode(), 0.0)

    def pump(self) -> None:
        """Carry messages until nobody has anything to say; the device works between them."""
        for _ in range(MAX_TURNS):
            is_quiet = not self.step()
            self.box.settle()
            if is_quiet and not self.step():
                return
        raise AssertionError("the bridge does not come to rest")

    def talk(self) -> None:
        """Carry messages until nobody has anything to say; the device does nothing."""
        for _ in range(MAX_TURNS):
            if not self.step():
                return
        raise AssertionError("the bridge does not come to rest")

    def step(self) -> bool:
        """Carry what is there to be carried once; the device does nothing."""
        for report in self.box.broker.log[self._position :]:
            self._view.take(report.topic, report.payload, 0.0)
        self._position = len(self.box.broker.log)
        done = self.machine.act(self.now_s)
        for out in done:
            self._carry(out)
        return bool(done)

    def make(self) -> Machine:
        """Return the bridge's machine for the device."""
        raise NotImplementedError

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Let the other side hear something."""
        raise NotImplementedError

    @property
    def device(self) -> Any:
        """The device as the bridge sees it."""
        return self._view.device(TOPICS.device)

    def _carry(self, out: Out) -> None:
        if out.note:
            self.notes.append(out.note)
        if isinstance(out, Command):
            self.sent.append(out)
            assert Topics(TOPICS.prefix, out.device) == TOPICS
            if self.is_online:
                self.box.send(out.name, out.body)
        elif isinstance(out, Foreign):
            self.publish(out.topic, out.payload, retain=out.retain)


class JobsBridged(Bridged):
    """A bridge to AWS IoT Jobs, as their documents describe them."""

    def __init__(self, box: Box, **more: Any) -> None:
        self.service = JobsService()
        self.more = more
        self.runs = 0
        self.loses_answers = 0
        super().__init__(box)

    def make(self) -> Machine:
        self.runs += 1
        options: JsonObject = {"seal": lambda _device, _name, body: body, **self.more}
        return ThingJobs(self.device, THING, bridge="aws", run=f"run{self.runs}", **options)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        assert not retain, "the service retains nothing"
        answers = self.service.request(topic, payload)
        if self.loses_answers:
            self.loses_answers -= 1
            answers = answers[1:]
        self.hear(answers)

    def hear(self, messages: Iterable[tuple[str, JsonObject]]) -> None:
        """Let the bridge hear what the service publishes and it listens to."""
        for topic, body in messages:
            self.machine.take(topic, json.dumps(body).encode(), self.now_s)

    def create(self, job: str, document: JsonObject | str) -> None:
        """Roll a job out."""
        self.hear(self.service.create(THING, job, document))

    def status(self, job: str) -> tuple[str, dict[str, str]]:
        """Return what the service says of a job."""
        found = self.service.find(THING, job)
        return found.status, found.details

    def updates(self, job: str) -> list[str]:
        """Return the statuses that were sent for a job, with the phase."""
        topic = f"$aws/things/{THING}/jobs/{job}/update"
        told = [body for each, body in self.service.requests if each == topic]
        return [" ".join(filter(None, (body["status"], body["statusDetails"].get("phase")))) for body in told]


class ThinEdgeBridged(Bridged):
    """A bridge to thin-edge.io: a broker that retains, where requester and bridge write the same topics."""

    def __init__(self, box: Box) -> None:
        self.retained: dict[str, bytes] = {}
        self.history: list[tuple[str, JsonObject | None]] = []
        super().__init__(box)

    def restart(self) -> None:
        super().restart()
        for topic, payload in list(self.retained.items()):
            self.machine.take(topic, payload, self.now_s, is_retained=True)

    def make(self) -> Machine:
        topics = EntityTopics("te", "main")
        return EntityCommands(self.device, topics, bridge="te", seal=lambda _device, _name, body: body)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        assert retain, "all states are retained"
        self.write(topic, json.loads(payload) if payload else None)

    def write(self, topic: str, body: JsonObject | None) -> None:
        """Retain a state, None to clear it; the bridge hears its own as well."""
        payload = b"" if body is None else json.dumps(body).encode()
        self.retained[topic] = payload
        if body is None:
            del self.retained[topic]
        self.history.append((topic, body))
        self.machine.take(topic, payload, self.now_s)

    def state(self, topic: str) -> JsonObject:
        """Return what is retained."""
        body: JsonObject = json.loads(self.retained[topic])
        return body

    def statuses(self, topic: str) -> list[str | None]:
        """Return every status that a command had, each once in a row, None for cleared."""
        found: list[str | None] = []
        for each, body in self.history:
            status = None if body is None else body.get("status")
            if each == topic and (not found or found[-1] != status):
                found.append(status)
        return found
