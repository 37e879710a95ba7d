"""``served.json``: a second copy of what the device cannot do without, beside the journal that is the truth.

It holds what is served, the highest sequence of each model, the settings that were changed over MQTT and the number of
the last connection, with a digest over all of it. It is replaced as a whole after every commit that changes it, so it
is at most one change behind, which ``revision`` shows. Nothing is taken from it while the journal is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from agent.deployment.models import Served
from agent.failpoints import around

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = structlog.get_logger("journal")
SCHEMA = 1


@dataclass(frozen=True)
class Essence:
    """What the copy holds.

    Attributes:
        revision: counts the changes.
        served: what stands behind every model name.
        sequences: the highest manifest sequence accepted per model.
        epoch: number of the last connection, when this was written.
        config: the settings that were changed, by ``section.key``; None in a copy that was written before it held them.
    """

    revision: int = 0
    served: dict[str, Served] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    epoch: int = 0
    config: dict[str, Any] | None = None


class ServedCopy:
    """The file.

    Args:
        path: where it lies.
        sync: makes what was written to a descriptor durable.
    """

    def __init__(self, path: Path, sync: Callable[[int], None] = os.fsync) -> None:
        self._path = path
        self._sync = sync

    def keep(self, essence: Essence) -> None:
        """Replace the file. A disk that is full leaves the older one, and a line in the log."""
        partial = self._path.with_suffix(".tmp")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(_dump(essence))
                file.flush()
                self._make_durable(file.fileno())
            with around("served_copy.rename"):
                partial.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                self._make_durable(directory)
            finally:
                os.close(directory)
        except OSError as error:
            log.warning("served_copy_not_kept", error=str(error))

    def _make_durable(self, descriptor: int) -> None:
        with around("served_copy.fsync"):
            self._sync(descriptor)

    def read(self) -> Essence | None:
        """Return what was kept; None without a file, and for one that is not whole."""
        try:
            told = json.loads(self._path.read_text(encoding="utf-8"))
            body = told["body"]
            if told["schema"] != SCHEMA or told["sha256"] != _digest(body):
                return None
            return Essence(
                int(body["revision"]),
                {name: Served.from_json(item) for name, item in body["served"].items()},
                {name: int(highest) for name, highest in body["sequences"].items()},
                int(body["epoch"]),
                dict(body["config"]) if "config" in body else None,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _dump(essence: Essence) -> str:
    body: dict[str, Any] = {
        "revision": essence.revision,
        "served": {name: item.to_json() for name, item in essence.served.items()},
        "sequences": essence.sequences,
        "epoch": essence.epoch,
        **({} if essence.config is None else {"config": essence.config}),
    }
    return json.dumps({"schema": SCHEMA, "sha256": _digest(body), "body": body})


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
