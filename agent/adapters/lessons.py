"""What the device learned about its estimates, in one small file: losing it costs precision, never a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import structlog

from agent.failpoints import around
from agent.planning.memory import Learned

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger("lessons")


class LessonFile:
    """``learned.json``, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._read()

    def learned(self) -> Learned:
        """Return what is known; the neutral value before the first deploy, or when the file is spoilt."""
        return self._known

    def keep(self, learned: Learned) -> None:
        """Remember ``learned``; a full disk keeps it for this run only."""
        self._known = learned
        partial = self._path.with_suffix(".tmp")
        try:
            partial.write_text(json.dumps(learned.to_json()), encoding="utf-8")
            with around("lessons.rename"):
                partial.replace(self._path)
        except OSError as error:
            log.warning("lesson_not_kept", error=str(error))

    def _read(self) -> Learned:
        try:
            return Learned.from_json(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Learned()
