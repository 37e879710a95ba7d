"""The plan of a rollout, as ``PLAN.toml`` says it: parsed into values, or refused with file, key and what was expected.

``configs/rollout.toml`` has every key with what it is for. Pure but for ``load``, which reads the plan and the files
that it names.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from datetime import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from agent.contract import commands, toml
from agent.contract.errors import RefusalError
from agent.contract.topics import ID_PATTERN, Group, Id
from agent.contract.wire import MAX_PAYLOAD_BYTES, JsonObject, complaint, dump, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RolloutId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
"""Shorter than other ids: those of its operations have it in them."""
Seconds = Annotated[float, Field(ge=0, le=30 * 86_400)]
Percent = Annotated[float, Field(ge=0, le=100)]
Days = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Then = Literal["pause", "abort"]
CommandName = Literal["deploy", "set_method", "replan", "compare", "rollback", "undeploy", "set_config", "self_test"]
UNDONE_BY_ROLLBACK = ("deploy", "set_method", "replan")
"""Commands that leave the release before as ``previous``."""
_FILES = ("manifest", "oms", "gate", "config")
"""Fields of a command whose value may stand in a JSON file of its own."""
_KINDS = {"tuple_type": "an array", "dict_type": "a table", "model_type": "a table"}
_ADDED_BYTES = 4096
"""For the id, and for a signature's frame."""


class PlanError(Exception):
    """A plan cannot be used; the text names the file, the key and what was expected."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (LookupError, OSError, ValueError):
        raise ValueError(
            "a name of the time zone database, such as Europe/Berlin, and the database on this machine"
        ) from None
    return name


class Window(_Table):
    """When devices may be begun with; one that ends before it begins lasts past midnight.

    Attributes:
        days: on which it begins.
        begin, end: ``from`` and ``to``, local times of ``timezone``.
    """

    days: Annotated[tuple[Days, ...], Field(min_length=1)] = get_args(Days)
    begin: Annotated[time, Field(alias="from")]
    end: Annotated[time, Field(alias="to")]
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"

    @model_validator(mode="after")
    def _lasts(self) -> Window:
        if self.begin == self.end:
            raise ValueError("from and to are the same, expected a time between them")
        return self


class Success(_Table):
    """How much of a wave has to succeed before the next one, and what becomes of a rollout in which it does not."""

    percent: Percent = 90.0
    then: Then = "pause"


class Errors(_Table):
    """How much of a wave may fail, from how many finished devices on that is judged, and what follows."""

    percent: Percent = 10.0
    min_devices: Annotated[int, Field(ge=1)] = 5
    then: Then = "abort"


class Pace(_Table):
    """How fast. ``offline``: what a device counts as that is away from its turn until ``timeout_s`` after it."""

    max_in_flight: Annotated[int, Field(ge=1)] = 10
    timeout_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 3600.0
    soak_s: Seconds = 600.0
    offline: Literal["fail", "skip"] = "fail"


class OnAbort(_Table):
    """What becomes of devices in flight, and of those that were changed."""

    in_flight: Literal["cancel", "finish"] = "cancel"
    rollback: bool = False


class Devices(_Table):
    """Who takes part: the devices that the broker knows, as far as they meet each of what is given.

    Attributes:
        groups: of which a device has to be in one.
        labels: all of which it has to have.
        ids: of which it has to be one.
        exclude: who takes no part in any case.
    """

    groups: tuple[Group, ...] = ()
    labels: dict[Id, str] = {}
    ids: tuple[Id, ...] = ()
    exclude: tuple[Id, ...] = ()


class Wave(_Table):
    """A part of the fleet: of those who take part and are in no wave before, the ones that exactly one key names.

    Attributes:
        devices, group, label: who they are.
        percent: as many as make up this share of the fleet together with the waves before.
        approval: whether a person has to agree before it begins.
        max_in_flight, soak_s, success, errors: of this wave, where they differ from the plan's.
    """

    name: Id
    devices: tuple[Id, ...] | None = None
    group: Group | None = None
    label: Annotated[dict[Id, str], Field(min_length=1)] | None = None
    percent: Annotated[float, Field(gt=0, le=100)] | None = None
    approval: bool = False
    max_in_flight: Annotated[int, Field(ge=1)] | None = None
    soak_s: Seconds | None = None
    success: Success | None = None
    errors: Errors | None = None

    @model_validator(mode="after")
    def _has_members(self) -> Wave:
        given = [name for name in ("devices", "group", "label", "percent") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of devices, group, label and percent, got {' and '.join(given) or 'none'}")
        return self


class Command(BaseModel):
    """What every device is sent: ``name`` and the fields of that command, as the contract has them."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: CommandName

    @property
    def fields(self) -> JsonObject:
        """Everything but the name."""
        return dict(self.model_extra or {})

    @property
    def model(self) -> str | None:
        """The model that it is about, None for a command without one."""
        return self.fields.get("model")


class Plan(_Table):
    """A whole plan; see ``configs/rollout.toml``."""

    format: Annotated[Literal[1], Field(alias="schema")]
    id: RolloutId
    command: Command
    undo: Command | None = None
    devices: Devices = Devices()
    waves: Annotated[tuple[Wave, ...], Field(min_length=1)]
    pace: Pace = Pace()
    success: Success = Success()
    errors: Errors = Errors()
    on_abort: OnAbort = OnAbort()
    windows: tuple[Window, ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Plan:
        names = [wave.name for wave in self.waves]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"waves: {twice[0]!r} is the name of two, expected a name for each")
        shares = [wave.percent for wave in self.waves if wave.percent is not None]
        if any(after <= before for before, after in itertools.pairwise(shares)):
            raise ValueError(
                f"waves: percent {', '.join(f'{share:g}' for share in shares)}: "
                "each counts what the waves before have reached, expected rising numbers"
            )
        if self.on_abort.rollback and self.undo is None and self.command.name not in UNDONE_BY_ROLLBACK:
            raise ValueError(
                f"on_abort.rollback: {self.command.name} has no way back of its own, expected its command in [undo]"
            )
        return self

    @property
    def digest(self) -> str:
        """Tells one plan from another, the files that it names included."""
        return _digest(self.model_dump(mode="json", by_alias=True))

    def success_of(self, wave: int) -> Success:
        """Return what has to succeed in a wave."""
        return self.waves[wave].success or self.success

    def errors_of(self, wave: int) -> Errors:
        """Return what may fail in a wave."""
        return self.waves[wave].errors or self.errors

    def soak_of(self, wave: int) -> float:
        """Return the seconds between the success of a wave and the next one."""
        own = self.waves[wave].soak_s
        return self.pace.soak_s if own is None else own

    def in_flight_of(self, wave: int) -> int:
        """Return how many devices may be in flight while a wave is the newest."""
        return self.waves[wave].max_in_flight or self.pace.max_in_flight


def load(path: Path) -> Plan:
    """Read a plan and the files that its commands name, which are relative to it.

    Raises:
        PlanError: something cannot be read or is not what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}, expected a plan in TOML") from None

    def read(key: str, name: str) -> JsonObject:
        file = path.parent / Path(name).expanduser()
        try:
            value = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or f"not JSON: {error}"
            raise PlanError(f"{path}: {key}: {file}: {why}, expected a file with a JSON object") from None
        if not isinstance(value, dict):
            raise PlanError(f"{path}: {key}: {file} has {kind_of(value)}, expected an object")
        return value

    return parse(text, str(path), read)


def parse(text: str, where: str, read: Callable[[str, str], JsonObject]) -> Plan:
    """Parse a plan.

    Args:
        text: TOML.
        where: the file's name, for errors.
        read: returns the JSON object in a file, given the key that names it and its name.

    Raises:
        PlanError: it is not what was expected.
    """
    try:
        body = toml.loads(text)
    except toml.TomlError as error:
        raise PlanError(f"{where}: not TOML: {error}") from None
    for table in ("command", "undo"):
        if isinstance(body.get(table), dict):
            body[table] = _filled(table, body[table], read)
    try:
        plan = Plan.model_validate(body)
    except ValidationError as error:
        raise PlanError("\n".join(_told(where, item) for item in _reasons(error)[:5])) from None
    _check(where, "command", plan.command)
    if plan.undo is not None:
        _check(where, "undo", plan.undo)
    return plan


def _filled(table: str, given: Mapping[str, Any], read: Callable[[str, str], JsonObject]) -> JsonObject:
    """Return a command's fields with the content of the files that they name."""
    filled = {
        key: read(f"{table}.{key}", value) if key in _FILES and isinstance(value, str) else value
        for key, value in given.items()
    }
    manifest = filled.get("manifest")
    if isinstance(manifest, dict) and isinstance(manifest.get("manifest"), dict):
        filled["manifest"] = manifest["manifest"]  # a whole command, of which nibblectl deploy takes the same
    return filled


def _check(where: str, table: str, command: Command) -> None:
    """Refuse what every device would refuse."""
    reserved = sorted({"schema", "id", "response_topic", "correlation_id", "signature"} & set(command.fields))
    if reserved:
        raise PlanError(f"{where}: {table}.{reserved[0]}: set by the rollout for each device, expected no such key")
    payload = dump({"schema": 1, "id": "r", **command.fields})
    most = MAX_PAYLOAD_BYTES - _ADDED_BYTES
    if len(payload) > most:
        raise PlanError(f"{where}: {table}: {len(payload)} bytes, at most {most} are sent")
    known = {field.alias or name for name, field in commands.COMMANDS[command.name].model_fields.items()}
    for key in command.fields:
        if key not in known:
            raise PlanError(f"{where}: {table}.{key}: {_unknown(key, known - {'schema', 'id'})}")
    try:
        parsed = commands.parse(command.name, payload)
        model = parsed.manifest.manifest().model if isinstance(parsed, commands.Deploy) and parsed.manifest else None
    except RefusalError as refusal:
        raise PlanError(f"{where}: {table}: {refusal.info().detail}") from None
    if model is not None and model != command.model:
        raise PlanError(f"{where}: {table}.manifest: it is for {model}, expected one for {command.model}")


def _reasons(error: ValidationError) -> list[Any]:
    """Return pydantic's errors without those that follow from others: a list that is short of what was refused."""
    items = error.errors(include_url=False)
    keys = [item["loc"] for item in items]
    return [
        item
        for item in items
        if item["type"] != "too_short" or not any(key[: len(item["loc"])] == item["loc"] != key for key in keys)
    ]


def _told(where: str, item: Any) -> str:
    """Return one of pydantic's errors as file, key, what was expected and what is there."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    head = f"{where}: {key}: " if key else f"{where}: "
    if item["type"] == "extra_forbidden":
        return head + _unknown(str(item["loc"][-1]), _known(item["loc"]))
    if item["type"] == "missing":
        return f"{head}missing, expected it in the plan"
    if item["type"] == "too_short":
        return f"{head}expected at least {item['ctx']['min_length']}, got {item['ctx']['actual_length'] or 'none'}"
    told = f"Input should be {_KINDS[item['type']]}" if item["type"] in _KINDS else complaint(item)
    expected = told.replace("Input should be", "expected").replace(f"'{ID_PATTERN}'", ID_PATTERN)
    got = item["input"]
    is_short = isinstance(got, (str, int, float, bool)) and item["type"] != "value_error"
    return f"{head}{expected}" + (f", got {json.dumps(got)[:80]}" if is_short else "")


def _unknown(key: str, known: set[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown key, expected {f'{close[0]}?' if close else 'one of ' + ', '.join(sorted(known))}"


def _known(loc: tuple[Any, ...]) -> set[str]:
    """Return the keys of the table that an unknown key stands in."""
    tables: dict[str, type[BaseModel]] = {
        "devices": Devices,
        "waves": Wave,
        "pace": Pace,
        "success": Success,
        "errors": Errors,
        "on_abort": OnAbort,
        "windows": Window,
    }
    inside = [part for part in loc[:-1] if isinstance(part, str)]
    table = tables.get(inside[-1], Plan) if inside else Plan
    return {field.alias or name for name, field in table.model_fields.items()}


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
