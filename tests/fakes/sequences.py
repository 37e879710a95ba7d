"""Made-up lives of a device: commands that come twice, late, retained, garbled or never, and a process that dies.

``python -m tests.fakes.sequences 10000`` plays so many and prints a row for docs/reliability.md. A life that breaks a
rule is named by its seed: ``python -m tests.fakes.sequences 1 SEED`` plays it again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from agent.adapters.journal import SqliteJournal
from agent.contract.desired import OWN, DesiredMessage
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.topics import is_id
from agent.contract.wire import parse_object
from agent.deployment.inbox import Connected
from agent.deployment.intake import CommandMessage
from agent.deployment.phases import State
from agent.deployment.ports import StepError
from tests.fakes.box import TOPICS, Box, deploy_body
from tests.fakes.device import checkpoint
from tests.fakes.journal import ProcessDeathError

CONTENTS = {f"https://models.example/{number}.pt": checkpoint(200, 60, seed=number) for number in range(3)}
MODELS = ("kanji", "kana")
METHODS = ("auto", "nf4", "fp4", "int8")
STEPS = (6, 18)
TERMINAL = frozenset(str(state) for state in State if state.is_terminal)
GARBAGE = (b"", b"{", b"[]", b'{"schema":1}', b'{"schema":2,"id":"d-1"}', b'{"schema":1,"id":"../x"}', b"\xff\xfe")

Acknowledge = Callable[[], None]
Message = Callable[[Acknowledge], CommandMessage | DesiredMessage]
"""A message to be delivered, once or more: given how it is acknowledged."""


@dataclass
class Tally:
    """What the lives had in them."""

    lives: int = 0
    commands: int = 0
    operations: int = 0
    deaths: int = 0
    repeats: int = 0
    states: Counter[str] = field(default_factory=Counter)


class Life:
    """One device with its broker, from a seed.

    A message that was not acknowledged comes again after every restart, as a broker's session brings it.
    """

    def __init__(self, root: Path, seed: int, tally: Tally) -> None:
        self._draw = random.Random(seed)
        self._tally = tally
        self._pending: dict[int, Message] = {}
        self._sent: list[Message] = []
        self._acknowledged: set[str] = set()
        self._number = 0
        self._generation = 0
        self.root = root
        self.box = Box(root)
        self.box.sources.files |= CONTENTS

    def play(self) -> None:
        """Live through all steps, then come to rest and be judged."""
        actions = (
            [self._deploy] * 5
            + [self._switch] * 3
            + [self._want] * 2
            + [self._small, self._garbage, self._retained, self._conflict]
            + [self._again] * 3
            + [self._cancel] * 2
            + [self._go_on] * 8
            + [self._let_time_pass, self._trouble, self._reboot, self._death_at_a_commit, self._lose_the_broker]
        )
        for _ in range(self._draw.randint(*STEPS)):
            self._alive(self._draw.choice(actions))
        self.box.journal.cut_at = None
        self.box.transport.is_connected = True
        self.box.engine.post(Connected())
        self._alive(self.box.settle)
        self._judge()

    def _alive(self, action: Callable[[], None]) -> None:
        try:
            action()
        except ProcessDeathError:
            self._reboot()

    def _reboot(self) -> None:
        self._tally.deaths += 1
        self.box.reboot()
        waiting = list(self._pending.values())
        self._pending.clear()
        for message in waiting:
            self._deliver(message)

    def _send(self, name: str, body: dict[str, Any] | bytes, **properties: Any) -> None:
        raw = body if isinstance(body, bytes) else json.dumps({"schema": 1, **body}).encode()
        self._dispatch(lambda acknowledge: CommandMessage(name, raw, acknowledge=acknowledge, **properties))

    def _dispatch(self, message: Message) -> None:
        self._tally.commands += 1
        self._sent.append(message)
        if self._draw.random() < 0.05:
            return  # lost on its way to the broker
        for _ in range(1 + (self._draw.random() < 0.15)):
            self._deliver(message)

    def _deliver(self, message: Message) -> None:
        self._number += 1
        number = self._number
        self._pending[number] = message

        def acknowledge() -> None:
            self._pending.pop(number, None)
            if name is not None:
                self._acknowledged.add(name)

        sent = message(acknowledge)
        name = _id_of(sent)
        self.box.engine.post(sent)

    def _id(self, kind: str) -> str:
        return f"{kind}-{self._draw.randint(1, 12)}"

    def _fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self._draw.random() < 0.3:
            fields["priority"] = self._draw.randint(-1, 2)
        if self._draw.random() < 0.15:
            fields["expires_at"] = f"2026-11-23T10:{self._draw.randint(39, 50)}:00Z"
        if self._draw.random() < 0.1:
            fields["expected_generation"] = self._draw.randint(0, 3)
        if self._draw.random() < 0.1:
            fields["response_topic"] = "answers/me"
        return fields

    def _artifact(self) -> dict[str, Any]:
        url = self._draw.choice(sorted(CONTENTS))
        method = self._draw.choice(METHODS)
        return {key: value for key, value in deploy_body("x", CONTENTS[url], url, method=method).items() if key != "id"}

    def _deploy(self) -> None:
        body = {**self._artifact(), "model": self._draw.choice(MODELS), **self._fields()}
        self._send("deploy", {**body, "id": self._id("d")})

    def _switch(self) -> None:
        name = self._draw.choice(("set_method", "rollback", "undeploy", "replan", "compare"))
        extra: dict[str, Any] = {"method": self._draw.choice(METHODS)} if name == "set_method" else {}
        if name == "compare":
            extra = {"methods": ["nf4", "int8"], "keep": self._draw.choice(["best", "current"])}
        self._send(name, {"id": self._id(name[0]), "model": self._draw.choice(MODELS), **extra})

    def _small(self) -> None:
        choices: list[tuple[str, dict[str, Any]]] = [
            ("status", {}),
            ("self_test", {}),
            ("collect_logs", {"max_bytes": 2000}),
            ("set_config", {"config": {"health": {"interval_s": self._draw.randint(1, 3)}}}),
            ("set_config", {"config": {"health": {"nothing": 1}}}),
        ]
        name, body = self._draw.choice(choices)
        self._send(name, {"id": self._id("q"), **body})

    def _want(self) -> None:
        self._generation = max(0, self._generation + self._draw.choice((1, 1, 1, 0, -1)))
        models: dict[str, Any] = {}
        for name in MODELS:
            if self._draw.random() < 0.7:
                models[name] = self._draw.choice([self._artifact(), self._artifact(), None, {"method": "int3"}])
        body = json.dumps({"schema": 1, "generation": self._generation, "models": models}).encode()
        self._dispatch(lambda acknowledge: DesiredMessage(OWN, body, acknowledge=acknowledge))

    def _garbage(self) -> None:
        self._send(self._draw.choice(("deploy", "cancel", "nonsense")), self._draw.choice(GARBAGE))

    def _retained(self) -> None:
        self._send("rollback", {"id": self._id("t"), "model": "kanji"}, is_retained=True)

    def _conflict(self) -> None:
        self._send("rollback", {"id": self._id("d"), "model": self._draw.choice(MODELS)})

    def _again(self) -> None:
        if self._sent:
            self._tally.repeats += 1
            self._deliver(self._draw.choice(self._sent))

    def _cancel(self) -> None:
        known = [operation.id for operation in self.box.engine.open_operations] or ["d-1"]
        self._send("cancel", {"id": self._id("x"), "operation": self._draw.choice(known)})

    def _go_on(self) -> None:
        for _ in range(self._draw.randint(1, 6)):
            self.box._drain()
            self.box.runner.pump()

    def _let_time_pass(self) -> None:
        self.box.clock.advance(self._draw.choice((1.0, 120.0, 700.0, 50_000.0)))
        self.box.engine.turn(wait_s=0)

    def _trouble(self) -> None:
        trouble = self._draw.choice(("load", "canary", "activate", "restore", "build", "fetch", "die"))
        if trouble == "build":
            self.box.builder.error = StepError(ErrorCode.BUILD_KILLED, "killed", is_transient=self._draw.random() < 0.5)
        elif trouble == "fetch":
            self.box.sources.cut_after = 100
        elif trouble == "die":
            self.box.server.die()
        else:
            self.box.server.fail(trouble, times=self._draw.randint(1, 3), is_transient=self._draw.random() < 0.5)

    def _death_at_a_commit(self) -> None:
        journal = self.box.journal
        journal.cut_at = journal.commits + self._draw.randint(1, 4)
        journal.is_cut_before = self._draw.random() < 0.5
        self._go_on()

    def _lose_the_broker(self) -> None:
        transport = self.box.transport
        transport.is_connected = not transport.is_connected
        if transport.is_connected:
            self.box.engine.post(Connected())

    def _judge(self) -> None:
        """Demand the rules: one execution per id, one terminal state per operation, a journal that can be read."""
        box = self.box
        assert not box.engine.open_operations, "something never ends"
        assert not self._pending, "something was never acknowledged"
        events = box.broker.bodies(TOPICS.event)
        begun = Counter(
            body["id"] for body in events if body["event"] == "operation_moved" and body["from"] == "queued"
        )
        accepted = Counter(body["id"] for body in events if body["event"] == "command_accepted")
        ended = Counter(body["id"] for body in events if body["event"] == "operation_ended")
        for what, counts in (("began", begun), ("was accepted", accepted), ("ended", ended)):
            twice = [name for name, count in counts.items() if count > 1]
            assert not twice, f"{twice} {what} more than once"
        lost = [name for name in self._acknowledged if box.journal.operation(name) is None]
        assert not lost, f"{lost} acknowledged and forgotten"
        served = box.journal.served()
        box.journal.close()
        again = SqliteJournal(self.root / "journal.db")
        try:
            assert again.notes().get("recovered") is None, "the journal had to be recovered"
            assert again.served() == served, "the journal says something else when it is opened again"
            for operation in again.recent_operations(10_000):
                told = {body["state"] for body in box.broker.bodies(TOPICS.operation(operation.id))}
                assert told & TERMINAL == {str(operation.state)}, f"{operation.id}: {told}, kept {operation.state}"
                self._tally.operations += 1
                self._tally.states[str(operation.state)] += 1
        finally:
            again.close()
        if str(box.keeper.mode) == "current" and not box.server._faults["restore"]:
            answers = {name: item.current.id for name, item in served.items()}
            assert box.server.answers() == answers or box.server._pid is None, "what answers is not what is served"


def _id_of(message: CommandMessage | DesiredMessage) -> str | None:
    """Return the id of a command that has one; the journal must know it once the broker does not any more."""
    if isinstance(message, DesiredMessage):
        return None
    try:
        body = parse_object(message.payload)
    except RefusalError:
        return None
    name = body.get("id")
    return name if isinstance(name, str) and is_id(name) else None


def play(count: int, first: int = 0) -> Tally:
    """Play ``count`` lives with seeds from ``first``; a broken rule raises AssertionError with the seed."""
    tally = Tally()
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory() as directory:
            life = Life(Path(directory), seed, tally)
            try:
                life.play()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            finally:
                with contextlib.suppress(Exception):
                    life.box.journal.close()
        tally.lives += 1
    return tally


def main() -> None:
    """Play, and print a row."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    count, first = (int(word) for word in [*sys.argv[1:], *("100", "0")[len(sys.argv) - 1 :]])
    began = time.monotonic()
    tally = play(count, first)
    states = ", ".join(f"{name} {number}" for name, number in tally.states.most_common())
    lived = (
        f"{tally.commands} commands, {tally.repeats} sent again, {tally.deaths} deaths of the process,"
        f" {tally.operations} operations ({states})"
    )
    took = f"{time.monotonic() - began:.0f} s"
    print(f"| command sequences, simulated device | {tally.lives} | {lived} | 0 broken rules | {took} |")  # noqa: T201


if __name__ == "__main__":
    main()
