"""The settings in force: the file, over it what ``set_config`` changed, over it the environment.

The environment wins, so that whoever stands before the box can undo what was set from afar; a key that it fixes is
refused by ``set_config`` instead of being changed without effect. Values are read anew at each use: no part is rebuilt
when one changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from agent.contract.config import CHANGEABLE, check, check_value, nest
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.matrix import parse_json
from agent.planning.patience import WatchPolicy
from agent.planning.plan import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from agent.planning.matrix import Row
    from agent.settings import Settings

log = structlog.get_logger("settings")
JsonObject = dict[str, Any]


def _matrix(value: Any) -> Any:
    parse_json(value, "matrix")
    return value


VALIDATORS: Mapping[str, Callable[[Any], Any]] = {"planning.matrix": _matrix}


class LiveSettings:
    """Implements the ``Configuration`` port.

    Args:
        settings: the file and the environment.
        stored: what ``set_config`` changed in earlier runs, by ``section.key``. A value that this version does not
            allow is left out, and named in the log: it must not keep the device from starting.
        fixed: the keys that the environment fixes.
        validators: see `agent.contract.config.check`.
    """

    def __init__(
        self,
        settings: Settings,
        stored: Mapping[str, Any],
        *,
        fixed: Collection[str] = (),
        validators: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        self._settings = settings
        self._fixed = frozenset(fixed)
        self._validators = VALIDATORS if validators is None else validators
        self._values: dict[str, Any] = {}
        for key, value in stored.items():
            self._take_over(key, value)
        self._current = self._overlaid()

    @property
    def current(self) -> Settings:
        """The whole configuration as it is in force."""
        return self._current

    def reserve_bytes(self) -> int:
        """Return what a model may never take."""
        return self._current.memory.reserve

    def limit_bytes(self) -> int | None:
        """Return the configured budget, None where it follows the memory."""
        budget = self._current.memory.budget
        return None if budget == "auto" else budget

    def download_rate(self) -> int:
        """Return the bytes/s that downloads may take, 0 for all."""
        return self._current.downloads.max_bytes_per_s

    def watch_policy(self) -> WatchPolicy:
        """Return how patient the watch of the memory is to be."""
        watch = self._current.watch
        return WatchPolicy(watch.mode, watch.down_after_s, watch.up_after_s, watch.up_margin, watch.min_dwell_s)

    def policy(self, matrix: tuple[Row, ...]) -> Policy:
        """Return how freely methods may be chosen; ``matrix`` holds where ``set_config`` gave no other."""
        planning, own = self._current.planning, self.value("planning.matrix")
        return Policy(matrix if own is None else parse_json(own), planning.matrix_only, planning.purpose)

    def value(self, key: str) -> Any:
        """Return the value in force of one changeable key; None where there is none."""
        section, _, name = key.partition(".")
        own = getattr(getattr(self._settings, section, None), name, None)
        return own if key in self._fixed else self._values.get(key, own)

    def overrides(self) -> JsonObject:
        """Return what ``set_config`` changed, nested as in the file."""
        return nest({key: self._values[key] for key in CHANGEABLE if key in self._values})

    def judge(self, config: JsonObject) -> dict[str, JsonObject]:
        """Return ``old`` and ``new`` by ``section.key``; ``new`` is None for the file's own value.

        Raises:
            RefusalError: ``bad_request`` for an unknown key, a wrong value, or a key that the environment fixes.
        """
        wanted = check(config, self._validators)
        fixed = sorted(self._fixed.intersection(wanted))
        if fixed:
            names = ", ".join(f"NIBBLED_{key.replace('.', '__').upper()}" for key in fixed)
            raise RefusalError(
                ErrorCode.BAD_REQUEST,
                f"set_config: {', '.join(fixed)} is fixed by the environment of this device",
                f"take {names} out of it first",
            )
        return {key: {"old": self.value(key), "new": value} for key, value in wanted.items()}

    def apply(self, changes: Mapping[str, JsonObject]) -> None:
        """Let what ``judge`` returned be in force from now on."""
        values = {**self._values, **{key: change["new"] for key, change in changes.items()}}
        self._values = {key: value for key, value in values.items() if value is not None}
        self._current = self._overlaid()

    def _take_over(self, key: str, value: Any) -> None:
        try:
            self._values[key] = check_value(key, value, self._validators)
        except (KeyError, ValueError) as error:
            log.warning("override_ignored", key=key, error=str(error))

    def _overlaid(self) -> Settings:
        changed: JsonObject = {}
        for section, values in self.overrides().items():
            own = getattr(self._settings, section, None)
            if own is None:
                continue
            known = {name: value for name, value in values.items() if f"{section}.{name}" not in self._fixed}
            changed[section] = own.model_copy(update={n: v for n, v in known.items() if n in type(own).model_fields})
        return self._settings.model_copy(update=changed)
