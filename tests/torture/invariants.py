"""The five invariants, checked from outside: journal file, broker, inference API and disk, no code of the agent's.

1. What answers is the old or the new release, and its answers are those of its artifact.
2. The journal parses.
3. The operation has exactly one terminal state: in the journal, on the broker, in all that was ever said.
4. The disk holds what is served and what a rollback leads to, nothing half-made, and little else.
5. What is reported is what answers.
"""

from __future__ import annotations

import json
import sqlite3
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.e2e.harness.inference import ask
from tests.e2e.harness.operator import MODEL, RUNNING
from tests.torture.forking import quiet
from tests.torture.rig import TortureError

if TYPE_CHECKING:
    from tests.torture.rig import Rig

JsonObject = dict[str, Any]
SETTLED_S, LOOK_S = 60.0, 0.1
ORDINARY = {"source", "footprint.json", "nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "fp16", "fp32"}
"""What may lie below the digest of a checkpoint or data set, whatever is served."""
REST_BYTES = 32 << 20
TOLERANCE = 1e-3
"""Of logits around 10: the server joins rows, and sums in another order."""


class Violation(TortureError):  # noqa: N818 - the name says what it is
    """An invariant does not hold."""


def journal_of(rig: Rig) -> tuple[JsonObject | None, dict[str, JsonObject]]:
    """Return what is served under the model's name and every operation's record; raises when the file is spoilt."""
    with quiet:
        return _journal_of(rig)


def _journal_of(rig: Rig) -> tuple[JsonObject | None, dict[str, JsonObject]]:
    database = sqlite3.connect(f"file:{rig.state_dir / 'journal.db'}?mode=ro", uri=True)
    try:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        served = dict(database.execute("SELECT model, item FROM served").fetchall())
        records = dict(database.execute("SELECT id, record FROM operation").fetchall())
    except sqlite3.DatabaseError as error:
        raise Violation(f"the journal does not parse: {error}") from None
    finally:
        database.close()
    if verdict != "ok":
        raise Violation(f"the journal does not parse: {verdict}")
    item = json.loads(served[MODEL]) if MODEL in served else None
    return item, {name: json.loads(record) for name, record in records.items()}


def check(rig: Rig, operation: str, mark: int, old: str | None) -> str:
    """Wait until the device has come to rest and return the operation's end.

    Args:
        rig: the device.
        operation: the one that was under way.
        mark: where it began in what the broker said.
        old: the release that was served before it.

    Raises:
        Violation: an invariant did not come to hold.
    """
    deadline = time.monotonic() + SETTLED_S
    while True:
        try:
            return _check(rig, operation, mark, old)
        except (Violation, FileNotFoundError):  # noqa: PERF203 - a poll; a file may go while it is looked at
            rig.revive()
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_S)


def _check(rig: Rig, operation: str, mark: int, old: str | None) -> str:
    item, records = journal_of(rig)
    state = _one_end(rig, operation, mark, records)
    current = item["current"] if item else None
    served = current["id"] if current else None
    new = (records[operation]["facts"].get("release") or {}).get("id")
    wanted = new or old if state == "succeeded" else old  # without a new one it found that nothing was to be done
    if served != wanted:
        raise Violation(f"{operation} is {state} and {served} is served; old {old}, new {new}")
    if item is not None:
        _answers(rig, item["current"])
        _reported(rig, item["current"])
    _disk(rig, item)
    return state


def _one_end(rig: Rig, operation: str, mark: int, records: dict[str, JsonObject]) -> str:
    if operation not in records:
        raise Violation(f"the journal does not know {operation}")
    state = str(records[operation]["state"])
    said = [body["state"] for body in rig.world.subscriber.on(rig.operator.topic(f"op/{operation}"), since=mark)]
    ends = {each for each in said if each not in RUNNING}
    if state in RUNNING or ends != {state} or said[-1] != state:
        raise Violation(f"{operation} is {state} in the journal, the broker was told {said}")
    still_open = [name for name, record in records.items() if record["state"] in RUNNING]
    if still_open:
        raise Violation(f"the journal holds open {still_open}")
    return state


def _answers(rig: Rig, current: JsonObject) -> None:
    try:
        with urllib.request.urlopen(f"{rig.agent.url}/models/{MODEL}", timeout=10) as response:  # noqa: S310 - loopback
            (version,) = json.load(response)["versions"]
        logits = ask(rig.agent.url, MODEL, rig.world.images)
    except (OSError, KeyError) as error:  # HTTPError is one
        raise Violation(f"{MODEL} does not answer: {error!r}") from None
    if version != current["version"]:
        raise Violation(f"version {version} answers, the journal says {current['version']}")
    expected = rig.world.answer_of(current["artifact"])
    apart = float(np.abs(logits - expected).max())
    if (logits.argmax(axis=1) != expected.argmax(axis=1)).any() or not apart <= TOLERANCE:
        raise Violation(f"the answers are not those of {current['id']}: {apart} apart")


def _reported(rig: Rig, current: JsonObject) -> None:
    body = rig.last(rig.operator.topic("reported"))
    told = ((body or {}).get("models") or {}).get(MODEL) or {}
    if (told.get("version"), told.get("method")) != (current["version"], current["method"]):
        raise Violation(f"reported is {told.get('version')} by {told.get('method')}, {current['id']} is served")
    presence = rig.last(rig.operator.topic("presence"))
    if presence is None or presence["state"] != "online":
        raise Violation(f"presence says {presence}")


def _disk(rig: Rig, item: JsonObject | None) -> None:
    releases = [item[name] for name in ("current", "previous") if item and item.get(name)]
    needed = {release["sha256"] for release in releases} | ({item["dataset"]} if item and item["dataset"] else set())
    kept = {path.name for path in (rig.state_dir / "artifacts").iterdir()}
    if not kept <= needed:
        raise Violation(f"the store holds {sorted(kept - needed)}, which nothing needs")
    for release in releases:
        for name in ("artifact", "gate_file"):
            if not _is_file(rig, release[name]):
                raise Violation(f"{release['id']}: {name} is not there")
    known = ORDINARY | {Path(release["artifact"]).parent.name for release in releases}
    strays = [path.name for path in (rig.state_dir / "artifacts").glob("*/*") if path.name not in known]
    parts = [path.name for path in (rig.state_dir / "downloads").iterdir()]
    if strays or parts:
        raise Violation(f"the disk holds what is half made or of no use: {strays + parts}")
    rest = [path for path in rig.state_dir.rglob("*") if path.is_file() and "artifacts" not in path.parts]
    if (total := sum(_size(path) for path in rest)) > REST_BYTES:
        raise Violation(f"journal, logs and the like take {total} bytes, {REST_BYTES} are allowed")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a log was just rotated, or a file replaced
        return 0


def _is_file(rig: Rig, name: str) -> bool:
    return (rig.state_dir / name).is_file()
