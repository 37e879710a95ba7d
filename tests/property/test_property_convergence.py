"""Convergence under every order of generations, ends and reboots, against a device in miniature."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from agent.contract.desired import OWN, Desired
from agent.deployment.convergence import ORIGIN, Goal, goals, is_met, merge, steer
from agent.deployment.machine import Operation
from agent.deployment.models import Release, Served
from agent.deployment.phases import RULES, Phase, State

if TYPE_CHECKING:
    from collections.abc import Collection

MODELS = ("kanji", "kana", "digits")
METHODS = ("nf4", "fp4")
WORST = 60
"""Rounds after which something goes in circles: three models and the settings, twice over, each in a few rounds."""


def entry(method: str) -> dict[str, Any]:
    return {"artifact": {"url": "https://h.example/a", "sha256": "a" * 64, "size": 9}, "method": method}


def release(method: str) -> Release:
    return Release(
        id=method, version="a" * 12, sha256="a" * 64, model_type="cnn", method=method, artifact="a", gate_file="g",
        artifact_bytes=1, resident_bytes=1, coverage=1.0, agreement=1.0, accuracy=None, accuracy_source=None,
    )  # fmt: skip


@dataclass
class Miniature:
    """What the engine and the journal do with a course, without either."""

    served: dict[str, Served] = field(default_factory=dict)
    open: dict[str, Operation] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    documents: dict[str, Desired] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)

    def adopt(self, document: Desired) -> None:
        self.documents[OWN] = document
        wanted = merge(self.documents, ())
        assert wanted is not None
        self.goals = goals(wanted, {*self.served, *(str(each.model) for each in self.open.values())}, {})

    def step(self, room: int, held: Collection[str] = ()) -> bool:
        """Follow one course; return whether there was anything to do."""
        course = steer(self.goals, list(self.open.values()), self.served, room=room, held=held)
        for goal in course.met:
            self.decide(goal.operation_id, State.SUCCEEDED)
        for operation_id in course.supersede:
            self.end(operation_id, State.SUPERSEDED)
        for goal in course.start:
            assert goal.operation_id not in self.begun
            busy = {each.model for each in self.open.values()} - {None}  # settings change at once, models do not
            assert goal.model not in busy, "two operations for one model"
            self.begun.append(goal.operation_id)
            self.open[goal.operation_id] = Operation(
                goal.operation_id, goal.command, goal.model, "", goal.fields, origin=ORIGIN
            )
        return bool(course)

    def end(self, operation_id: str, state: State) -> None:
        operation = self.open.pop(operation_id)
        self.decide(operation_id, state)
        if state is State.SUCCEEDED and operation.command == "undeploy":
            self.served.pop(str(operation.model), None)
        elif state is State.SUCCEEDED and operation.model is not None:
            item = replace(release(operation.request["method"]), chosen_by="operator")
            self.served[operation.model] = Served(operation.model, item)

    def decide(self, operation_id: str, state: State) -> None:
        self.goals = tuple(
            replace(goal, outcome=str(state)) if goal.operation_id == operation_id and goal.outcome is None else goal
            for goal in self.goals
        )


wishes = st.dictionaries(st.sampled_from(MODELS), st.none() | st.sampled_from(METHODS).map(entry))
configs = st.none() | st.just({"health": {"interval_s": 5}})
documents = st.builds(lambda models, config: {"models": models, "config": config}, wishes | st.none(), configs)
ends = st.sampled_from([State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.REJECTED, State.ROLLED_BACK])
phases = st.sampled_from([Phase.QUEUED, Phase.BUILDING, Phase.ACTIVATING, Phase.TRIAL])


def settle(device: Miniature, draw_end: Any, room: int) -> None:
    for _ in range(WORST):
        moved = device.step(room)
        if not moved and not device.open:
            return
        if not moved:
            device.end(next(iter(device.open)), draw_end())
    raise AssertionError("it does not come to rest")


@given(st.lists(documents, min_size=1, max_size=5), st.integers(1, 4), st.data())
def test_it_comes_to_rest_with_every_goal_decided_and_each_operation_begun_once(
    wanted: list[dict[str, Any]], room: int, data: st.DataObject
) -> None:
    device = Miniature()
    for generation, document in enumerate(wanted, 1):
        device.adopt(Desired(generation=generation, **document))
        settle(device, lambda: data.draw(ends), room)
        assert all(goal.outcome is not None for goal in device.goals)
        for goal in device.goals:
            if goal.outcome == State.SUCCEEDED and goal.model is not None:
                assert is_met(goal, device.served)
        assert device.step(room) is False, "at rest, there is nothing to do"


@given(st.lists(documents, min_size=1, max_size=5), st.data())
def test_where_nothing_fails_what_is_wanted_is_served(wanted: list[dict[str, Any]], data: st.DataObject) -> None:
    device = Miniature()
    for generation, document in enumerate(wanted, 1):
        device.adopt(Desired(generation=generation, **document))
        for _ in range(data.draw(st.integers(0, 3))):  # the next generation may arrive in the middle
            if not device.step(2) and device.open:
                device.end(next(iter(device.open)), State.SUCCEEDED)
    settle(device, lambda: State.SUCCEEDED, 2)
    last = wanted[-1]["models"]
    if last is not None:
        served = {name: item.current.method for name, item in device.served.items()}
        assert served == {name: fields["method"] for name, fields in last.items() if fields is not None}


@given(documents, documents, phases, st.data())
def test_a_reboot_at_any_point_begins_nothing_twice(
    one: dict[str, Any], two: dict[str, Any], phase: Phase, data: st.DataObject
) -> None:
    device = Miniature()
    device.adopt(Desired(generation=1, **one))
    device.step(2)
    if data.draw(st.booleans()):
        device.open = {name: replace(each, state=State.RUNNING, phase=phase) for name, each in device.open.items()}
        device.adopt(Desired(generation=2, **two))
    rebooted = Miniature(dict(device.served), dict(device.open), device.goals, dict(device.documents), device.begun)
    kept = [name for name in rebooted.open if not RULES[rebooted.open[name].phase].is_cancelable]
    rebooted.step(2)
    assert all(name in rebooted.open for name in kept)
    settle(rebooted, lambda: data.draw(ends), 2)


@given(documents, documents, st.sampled_from([State.ACCEPTED, State.RUNNING]), st.data())
def test_what_is_held_does_not_begin_and_holds_up_nothing_else(
    own: dict[str, Any], group: dict[str, Any], state: State, data: st.DataObject
) -> None:
    merged = merge({OWN: Desired(generation=1, **own), "lab": Desired(generation=1, **group)}, ("lab",))
    assert merged is not None
    device = Miniature(goals=goals(merged, MODELS, {}))
    of_group = [goal for goal in device.goals if merged.asking(goal)]
    assert all(goal.model not in (own["models"] or {}) for goal in of_group), "the device's own word is no group's"
    held = {goal.operation_id for goal in of_group}
    for name in sorted(data.draw(st.sets(st.sampled_from(sorted(held)))) if held else ()):
        goal = next(goal for goal in of_group if goal.operation_id == name)
        device.open[name] = Operation(name, goal.command, goal.model, "", goal.fields, state, origin=ORIGIN)
    waiting = set(device.open) if state is State.ACCEPTED else set()
    for _ in range(WORST):
        moved = device.step(4, held)
        free = [name for name in device.open if name not in waiting]
        if not moved and not free:
            break
        for name in free[:1]:
            device.end(name, State.SUCCEEDED)
    assert held.isdisjoint(device.begun)
    left = {goal.operation_id for goal in device.goals if goal.outcome is None}
    assert waiting <= left <= held


@given(st.lists(documents, min_size=2, max_size=2))
def test_the_devices_own_word_wins_over_a_groups_for_each_model(both: list[dict[str, Any]]) -> None:
    own, group = (Desired(generation=number, **document) for number, document in enumerate(both))
    merged = merge({OWN: own, "lab": group}, ("lab",))
    assert merged is not None
    for name, fields in (own.models or {}).items():
        assert merged.models is not None
        assert merged.models[name] == fields
    for name, fields in (group.models or {}).items():
        if name not in (own.models or {}):
            assert (merged.models or {})[name] == fields
    assert merge({"other": own}, ("lab",)) is None


@given(st.text("abcz09_-", min_size=1, max_size=64), st.integers(0, 2**53 - 1))
def test_ids_of_operations_are_ids_whatever_the_model_is_called(model: str, generation: int) -> None:
    wanted = merge({OWN: Desired(generation=generation, models={model: entry("nf4")})}, ())
    assert wanted is not None
    (goal,) = goals(wanted, (), {})
    assert 1 <= len(goal.operation_id) <= 64
    assert goal.operation_id.startswith(f"gen{generation}-")
