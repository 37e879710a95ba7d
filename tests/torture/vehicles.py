"""What a device is made to do so that it passes a fail point: the shortest operation that does, and what it needs.

A vehicle prepares the device, and once a fault is armed sets off an operation and returns its id.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.e2e.harness.mqtt import clear, publish, take_over
from tests.e2e.harness.operator import MODEL
from tests.torture.arming import MODULES
from tests.torture.forking import quiet
from tests.torture.invariants import journal_of
from tests.torture.points import BUILDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.harness.processes import Process
    from tests.torture.rig import JsonObject, Rig

ASKED_EVERY_S, LOOK_S, RECONNECTED_S = 0.05, 0.02, 20.0
OTHER = "other"
METHODS = ("nf4", "int8")


@dataclass(frozen=True)
class Vehicle:
    """How a device is brought to pass a point.

    Attributes:
        name: for messages and orders.
        go: sets off an operation.
        prepare: what happens before the fault is armed.
    """

    name: str
    go: Callable[[Rig], str]
    prepare: Callable[[Rig], None] = lambda _rig: None


def _current(rig: Rig) -> JsonObject:
    item, _records = journal_of(rig)
    current: JsonObject = item["current"] if item else {}
    return current


def switch(rig: Rig) -> str:
    """Change to the method that is not served; both are in the store after the first two times."""
    return rig.set_method(METHODS[_current(rig)["method"] == METHODS[0]])


def asked_and_switched(rig: Rig) -> str:
    """Ask for everything as well."""
    rig.operator.send("status")
    return switch(rig)


def deployed(rig: Rig) -> str:
    """Deploy a new checkpoint: download, inspection, build, and all that follows."""
    return rig.deploy()


def asked_while_building(rig: Rig) -> str:
    """Deploy a new checkpoint, and ask for everything again and again until the fault comes or the deploy ends."""
    mark = rig.operator.mark()
    operation = rig.deploy()
    while not rig.has_struck() and not rig.has_ended(operation, mark) and rig.agent.is_running:
        rig.operator.send("status")
        time.sleep(ASKED_EVERY_S)
    return operation


def followed_while_building(rig: Rig) -> str:
    """Deploy a new checkpoint, and another one while the first is built."""
    _await_builder(rig, rig.deploy())
    return rig.deploy()


def met_while_building(rig: Rig) -> str:
    """Deploy another model, and while it is built want of this one what is served already."""
    operation = _building_another(rig)
    _want_what_is_served(rig)
    return operation


def settings_wanted_while_building(rig: Rig) -> str:
    """Deploy another model, and while it is built want settings, which are in force at once."""
    operation = _building_another(rig)
    _publish(rig, {"generation": rig.number(), "config": {"health": {"interval_s": 1.0}}})
    return operation


def _building_another(rig: Rig) -> str:
    manifest = rig.world.signer.seal(rig.operator.manifest(rig.world.checkpoint(), model=OTHER))
    operation = rig.operator.send("deploy", model=OTHER, manifest=manifest, method="nf4")
    _await_builder(rig, operation)
    return operation


def _await_builder(rig: Rig, operation: str) -> None:
    with _builder(rig, operation):
        pass


@contextlib.contextmanager
def _builder(rig: Rig, operation: str) -> Iterator[Process | None]:
    """Wait for the builder of an operation; None if it ends without one.

    The same program tests the methods at a start and looks into checkpoints while planning: it is this operation's
    builder once that is said to build.
    """
    with contextlib.ExitStack() as held:
        while rig.agent.is_running and not rig.has_ended(operation, 0):
            state = rig.last(rig.operator.topic(f"op/{operation}"))
            is_building = state is not None and state.get("phase") == "building"
            builders = rig.agent.children(MODULES[BUILDER]) if is_building else []
            for each in builders:
                held.callback(each.close)
            if builders:
                yield builders[0]
                return
            time.sleep(LOOK_S)
        yield None


def _signal(process: Process | None, number: signal.Signals) -> None:
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            process.send(number)


def reconnected(rig: Rig) -> str:
    """Search for a mix of methods, and lose the connection while a builder works on it, which is held up meanwhile."""
    operation = mixed(rig)
    with _builder(rig, operation) as builder:
        _signal(builder, signal.SIGSTOP)
        take_over(rig.world.broker.port, rig.agent.device_id)
        deadline = time.monotonic() + RECONNECTED_S
        while not rig.has_struck() and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        _signal(builder, signal.SIGCONT)
    return operation


def disconnected(rig: Rig) -> str:
    """Change the method, and lose the connection to the broker."""
    operation = switch(rig)
    take_over(rig.world.broker.port, rig.agent.device_id)
    return operation


def measured_anew(rig: Rig) -> str:
    """Deploy what is served once more, to measure it with other data: its artifact is built anew and replaced."""
    item, _records = journal_of(rig)
    used = item["dataset"] if item else None
    other = next(file for file in rig.world.datasets if file.reference()["sha256"] != used)
    gate = {"soak_s": 0.1, "min_agreement": 0.5, "dataset": other.reference()}
    current = _current(rig)
    manifest = {**rig.manifests[current["sha256"]], "sequence": rig.operator.manifest(other)["sequence"]}
    return rig.operator.deploy(manifest, gate=gate, method=current["method"])


def mixed(rig: Rig) -> str:
    """Let the device look for a mix of methods, never the same one twice."""
    return rig.set_method("mixed", min_agreement=round(0.5 + rig.number() / 1000, 3))


def wanted(rig: Rig) -> str:
    """Publish the next generation of a wanted state: the same checkpoint, by the other method."""
    method = METHODS[_current(rig)["method"] == METHODS[0]]
    generation = rig.number()
    gate = {"soak_s": 0.1, "min_agreement": 0.5}
    _want(rig, generation, method=method, sequence=10_000 + generation, gate=gate)
    return f"gen{generation}-{MODEL}"


def met_and_wanted(rig: Rig) -> str:
    """Publish a generation that is met already, and one that is not once the device has said so."""
    mark = rig.operator.mark()
    _want_what_is_served(rig)
    rig.await_event("desired_reached", mark)
    return wanted(rig)


def _want_what_is_served(rig: Rig) -> None:
    current = _current(rig)
    told = {name: current[name] for name in ("method", "sequence", "gate")}
    _want(rig, rig.number(), **told)


def _want(rig: Rig, generation: int, *, method: str, sequence: int, gate: JsonObject) -> None:
    model = {
        "manifest": rig.world.signer.seal({**(rig.manifest or {}), "sequence": sequence}),
        "method": method,
        "gate": {"dataset": rig.world.datasets[0].reference(), **gate},
    }
    _publish(rig, {"generation": generation, "models": {MODEL: model}})


def _publish(rig: Rig, document: JsonObject) -> None:
    text = json.dumps({"schema": 1, **document})
    publish(rig.world.broker.port, rig.operator.topic("desired"), text, is_retained=True)


def deferred(rig: Rig) -> str:
    """Publish a document of a group that this device is outside of, and change the method."""
    _defer(rig)
    return switch(rig)


def halted(rig: Rig) -> str:
    """Halt the group and lift that again, and change the method."""
    _halt(rig)
    return switch(rig)


def deferred_while_building(rig: Rig) -> str:
    """Deploy another model, and while it is built publish a group's document that is not for this device."""
    operation = _building_another(rig)
    _defer(rig)
    return operation


def halted_while_building(rig: Rig) -> str:
    """Deploy another model, and while it is built halt the group and lift that again."""
    operation = _building_another(rig)
    _halt(rig)
    return operation


def _defer(rig: Rig) -> None:
    document = {"schema": 1, "generation": rig.number(), "rollout": {"id": "nobody", "percent": 0}}
    _tell_group(rig, "desired", json.dumps(document))


def _halt(rig: Rig) -> None:
    _tell_group(rig, "halt", json.dumps({"schema": 1, "reason": "torture"}))
    clear(rig.world.broker.port, _group_topic(rig, "halt"))


def _tell_group(rig: Rig, kind: str, text: str) -> None:
    publish(rig.world.broker.port, _group_topic(rig, kind), text, is_retained=True)


def _group_topic(rig: Rig, kind: str) -> str:
    return f"edge/v1/_group/{rig.group}/{kind}"


def started(rig: Rig) -> str:
    """Start the agent, then change the method."""
    rig.boot()
    return switch(rig)


def stopped(rig: Rig) -> str:
    """End the agent as the system does, and start it again."""
    if rig.agent.is_running:
        rig.agent.terminate()
    return started(rig)


def _killed(rig: Rig) -> None:
    rig.agent.kill()


def _of_an_older_agent(rig: Rig) -> None:
    """Take the journal back to its second version, as an agent two upgrades ago left it."""
    rig.agent.kill()
    with quiet, contextlib.closing(sqlite3.connect(rig.state_dir / "journal.db")) as database, database:
        for table in ("desired", "goal", "note", "used", "waiting", "halt"):
            database.execute(f"DROP TABLE {table}")
        database.execute("ALTER TABLE operation DROP COLUMN is_cleared")
        database.execute("PRAGMA user_version = 2")


def _spoilt(rig: Rig) -> None:
    """Overwrite the journal's head: nothing can be read from it any more."""
    rig.agent.kill()
    with quiet, contextlib.closing(sqlite3.connect(rig.state_dir / "journal.db")) as database:
        database.execute("SELECT count(*) FROM served")  # the last one to close takes the log's pages over
    with (rig.state_dir / "journal.db").open("r+b") as file:
        file.write(bytes(100))


def _cut_short_while_replacing(rig: Rig) -> None:
    """Leave the served artifact where a crash between the two renames of a replacement leaves it."""
    rig.agent.kill()
    directory: Path = rig.state_dir / "artifacts" / _current(rig)["sha256"] / _current(rig)["method"]
    directory.rename(directory.with_name(f"{directory.name}.old"))


def _without_downloads(rig: Rig) -> None:
    """Take a directory away that is made at the next start."""
    rig.agent.kill()
    shutil.rmtree(rig.state_dir / "downloads")


SWITCH = Vehicle("switch", switch)
ASK = Vehicle("ask", asked_and_switched)
BOOT = Vehicle("boot", started, _killed)
BUSY = Vehicle("busy", asked_while_building)
FOLLOWED = Vehicle("followed", followed_while_building)
MET_BUSY = Vehicle("met while building", met_while_building)
SETTINGS_BUSY = Vehicle("settings while building", settings_wanted_while_building)
DEFER = Vehicle("defer", deferred)
HALT = Vehicle("halt", halted)
DEFER_BUSY = Vehicle("defer while building", deferred_while_building)
HALT_BUSY = Vehicle("halt while building", halted_while_building)
STOP = Vehicle("stop", stopped)
DAMAGED = Vehicle("damaged", started, _spoilt)
UPGRADE = Vehicle("upgrade", started, _of_an_older_agent)
MEND = Vehicle("mend", started, _cut_short_while_replacing)
STRIPPED = Vehicle("stripped", started, _without_downloads)
DISCONNECT = Vehicle("disconnect", disconnected)
RECONNECT = Vehicle("reconnect", reconnected)
REMEASURE = Vehicle("remeasure", measured_anew)
MIX = Vehicle("mix", mixed)
DEPLOY = Vehicle("deploy", deployed)
DESIRED = Vehicle("desired", wanted)
MET = Vehicle("met", met_and_wanted)
