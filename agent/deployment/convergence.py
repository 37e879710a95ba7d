"""From wanted documents to goals, and from goals to what is to be done next. Pure.

Rules:
* groups' documents are laid over each other in the order of the settings, the last one below, and the device's own over
  them all: per model and per setting the upper one decides. A model that none of them names is not to be served;
* a generation becomes goals once, when it arrives: one per model that is wanted, served or about to be, and one for the
  settings. What a command changes afterwards stands until the next generation;
* a goal is met by what is served already, or by exactly one operation, whose end is its outcome: what failed is tried
  again by the next generation only;
* a goal of a group begins nothing while it is held: a halt stops it, or it is not known whether one does;
* a goal waits for other operations on its model. Those of an older generation are superseded where they may be stopped;
* settings come first, then what frees memory, then what needs it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agent.contract.commands import Deploy
from agent.contract.desired import OWN
from agent.contract.errors import RefusalError
from agent.contract.wire import dump
from agent.deployment.facts import source_of
from agent.deployment.phases import RULES, State

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from agent.contract.desired import Desired
    from agent.deployment.machine import Operation
    from agent.deployment.models import Served

JsonObject = dict[str, Any]
ORIGIN = "desired"
"""``origin`` of the operations that a generation began."""
_MAX_ID = 64
_STAGES = ("set_config", "undeploy", "deploy")


@dataclass(frozen=True)
class Goal:
    """One thing that a generation wants.

    Attributes:
        operation_id: of the operation that leads there, if one is needed.
        command: ``set_config``, ``undeploy`` or ``deploy``.
        model: whose goal it is, None for settings.
        fields: the command's fields.
        outcome: the terminal state that the goal came to; None while it is open.
    """

    operation_id: str
    command: str
    model: str | None
    fields: JsonObject
    outcome: str | None = None

    @property
    def subject(self) -> str:
        """What it is about, for reports."""
        return self.model or "config"

    def payload(self) -> bytes:
        """Return the command as an operator would send it."""
        about = {} if self.model is None else {"model": self.model}
        return dump({**self.fields, "schema": 1, "id": self.operation_id, **about})

    def to_json(self) -> JsonObject:
        """Return a JSON object that ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: JsonObject) -> Goal:
        """Read what ``to_json`` wrote, in this version or an older one: some kept the goal's groups with it."""
        return cls(**{key: value for key, value in body.items() if key != "groups"})


@dataclass(frozen=True)
class Wanted:
    """What all documents together want.

    Attributes:
        stamp: names their generations; begins the ids of operations.
        models: a ``deploy``'s fields by name, None for a model that is not to be served; None if nothing is said.
        config: settings by section, None if nothing is said.
        deciding: the source that decides each of the models.
        of_models, of_config: the groups that say anything of models, and of settings.
    """

    stamp: str
    models: Mapping[str, JsonObject | None] | None
    config: JsonObject | None
    deciding: Mapping[str, str]
    of_models: tuple[str, ...]
    of_config: tuple[str, ...]

    def asking(self, goal: Goal) -> tuple[str, ...]:
        """Return the groups that ask for a goal: all that speak of models where none names its own. A halt holds it."""
        if goal.model is None:
            return self.of_config
        source = self.deciding.get(goal.model)
        return self.of_models if source is None else tuple(filter(None, (source,)))


@dataclass(frozen=True)
class Course:
    """What is to be done next.

    Attributes:
        met: goals that need no operation.
        supersede: open operations of an older generation that may be stopped.
        start: goals whose operation begins now.
    """

    met: tuple[Goal, ...] = ()
    supersede: tuple[str, ...] = ()
    start: tuple[Goal, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.met or self.supersede or self.start)


def merge(documents: Mapping[str, Desired], groups: Sequence[str]) -> Wanted | None:
    """Return what the documents want together, None if there are none.

    Args:
        documents: by source.
        groups: the device's groups, the one that wins first; documents of others do not count.
    """
    layers = [(source, documents[source]) for source in (OWN, *groups) if source in documents]
    if not layers:
        return None
    models: dict[str, JsonObject | None] = {}
    config: JsonObject = {}
    deciding: dict[str, str] = {}
    for source, document in reversed(layers):
        models |= document.models or {}
        deciding |= dict.fromkeys(document.models or {}, source)
        for section, values in (document.config or {}).items():
            below = config.get(section)
            config[section] = {**below, **values} if isinstance(below, dict) and isinstance(values, dict) else values
    return Wanted(
        "-".join(
            f"{source}-{document.generation}" if source else f"gen{document.generation}" for source, document in layers
        ),
        models if any(document.models is not None for _, document in layers) else None,
        config if any(document.config is not None for _, document in layers) else None,
        deciding,
        tuple(source for source, document in layers if source and document.models is not None),
        tuple(source for source, document in layers if source and document.config is not None),
    )


def goals(wanted: Wanted, present: Collection[str], changed: JsonObject) -> tuple[Goal, ...]:
    """Return the goals of a state that has just become the wanted one.

    Args:
        wanted: the state.
        present: the models that are served, or that an open operation is about.
        changed: the settings that are changed now, nested; those that are not wanted go back to the file's value.
    """
    found = []
    if wanted.config is not None:
        reset = {section: dict.fromkeys(values) for section, values in changed.items()}
        config = {**reset, **wanted.config}
        for section in set(reset) & set(wanted.config):
            if isinstance(wanted.config[section], dict):
                config[section] = {**reset[section], **wanted.config[section]}
        if config:
            found.append(Goal(_id(f"{wanted.stamp}_config"), "set_config", None, {"config": config}))
    if wanted.models is not None:
        kept = {name: fields for name, fields in wanted.models.items() if fields is not None}
        orders: list[tuple[str, str, JsonObject]] = [
            ("undeploy", name, {}) for name in sorted(set(present) - set(kept))
        ]
        orders += [("deploy", name, kept[name]) for name in sorted(kept, key=lambda name: -_priority(kept[name]))]
        found += [Goal(_id(f"{wanted.stamp}-{name}"), command, name, fields) for command, name, fields in orders]
    return tuple(found)


def steer(
    goals: Sequence[Goal],
    open_operations: Sequence[Operation],
    served: Mapping[str, Served],
    *,
    room: int,
    held: Collection[str] = (),
) -> Course:
    """Return what is to be done next; nothing when all goals are met, under way or waiting.

    Args:
        goals: of the generation in force.
        open_operations: every operation without an end.
        served: what the journal says is served.
        room: how many operations may begin now.
        held: ids of operations that must not begin; others do not wait for them.
    """
    known = {goal.operation_id for goal in goals}
    old = [each for each in open_operations if each.origin == ORIGIN and each.id not in known]
    supersede = tuple(each.id for each in old if RULES[each.phase].is_cancelable)
    pending = [goal for goal in goals if goal.outcome is None]
    running = {each.id for each in open_operations}
    busy = {each.model for each in open_operations}
    free = [goal for goal in pending if goal.operation_id not in running and goal.model not in busy - {None}]
    met = tuple(goal for goal in free if is_met(goal, served))
    waiting = set(held) - {each.id for each in open_operations if each.state is State.RUNNING}
    unmet = [goal for goal in pending if goal not in met and goal.operation_id not in waiting]
    stage = min((_STAGES.index(goal.command) for goal in unmet), default=0)
    start = [goal for goal in unmet if goal in free and _STAGES.index(goal.command) == stage]
    return Course(met, supersede, tuple(start[: max(0, room)]))


def is_met(goal: Goal, served: Mapping[str, Served]) -> bool:
    """Return whether what is served is what the goal asks for; of settings nobody can tell that here."""
    if goal.model is None:
        return False
    item = served.get(goal.model)
    if goal.command == "undeploy" or item is None:
        return goal.command == "undeploy" and item is None
    try:
        command = Deploy.model_validate({**goal.fields, "schema": 1, "id": goal.operation_id, "model": goal.model})
        request = command.model_dump(mode="json", exclude_unset=True)
        source = source_of(request)
    except (ValidationError, RefusalError, KeyError):
        return False  # what is wrong with it is for its operation to say
    current, dataset = item.current, command.gate.dataset
    gate = {name: value for name, value in request.get("gate", {}).items() if name != "dataset"}
    return (
        (source.version, source.sha256, gate) == (current.version, current.sha256, current.gate)
        and source.sequence in (None, current.sequence)
        and (dataset is None or dataset.sha256 == item.dataset)
        and current.chosen_by == ("auto" if command.method == "auto" else "operator")
        and command.method in ("auto", current.method)
    )


def _priority(fields: JsonObject) -> int:
    value = fields.get("priority", 0)
    return value if isinstance(value, int) else 0


def _id(text: str) -> str:
    """Return an operation's id; one that would be too long keeps its beginning and gets a digest."""
    if len(text) <= _MAX_ID:
        return text
    return f"{text[:51]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
