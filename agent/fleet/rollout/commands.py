"""What a rollout sends to a device and what its reports mean for it. Pure.

Ids of operations follow from the rollout, the device and the command alone: whoever runs the same plan, on whatever
machine, sends the same ids, and a device runs each once.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from agent.contract.commands import Deploy, parse
from agent.contract.errors import RefusalError
from agent.contract.wire import JsonObject, dump
from agent.deployment.phases import State
from agent.fleet.rollout.events import Purpose
from agent.fleet.rollout.plan import UNDONE_BY_ROLLBACK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.fleet.rollout.plan import Command, Plan

_PREFIXES = {Purpose.DO: "r", Purpose.CANCEL: "c", Purpose.UNDO: "b"}
MAX_COMMIT_S = 5.0
"""What may lie between the commit of a release and the last word of the operation that brought it, by one clock."""


def operation_id(plan: Plan, device: str, purpose: Purpose) -> str:
    """Return the id of the operation that serves a purpose on a device."""
    return f"{_PREFIXES[purpose]}-{plan.id}-{_digest(plan, device)}"


def purpose_of(plan: Plan, device: str, operation: str) -> Purpose | None:
    """Return what an operation of a device is for, None for one that is not of this rollout."""
    if not operation.endswith(f"-{_digest(plan, device)}"):
        return None
    return next((each for each in (Purpose.DO, Purpose.UNDO) if operation_id(plan, device, each) == operation), None)


def command(plan: Plan, device: str) -> tuple[str, JsonObject]:
    """Return name and body of the command that the rollout brings."""
    return _sent(plan, device, Purpose.DO, plan.command.name, plan.command.fields)


def cancel(plan: Plan, device: str) -> tuple[str, JsonObject]:
    """Return name and body of the command that stops it."""
    return _sent(plan, device, Purpose.CANCEL, "cancel", {"operation": operation_id(plan, device, Purpose.DO)})


def undo(
    plan: Plan, device: str, reported: JsonObject | None, operation: JsonObject | None
) -> tuple[str, JsonObject] | str:
    """Return name and body of the command that takes it back, or why there is nothing to take back.

    Args:
        plan: the plan.
        device: its id.
        reported: what the device last said that it serves, None if nothing.
        operation: the last state of the operation that is taken back.
    """
    if plan.undo is not None:
        return _sent(plan, device, Purpose.UNDO, plan.undo.name, plan.undo.fields)
    name = str(plan.command.model)
    model = ((reported or {}).get("models") or {}).get(name)
    if model is None:
        return f"{name} is not served any more"
    if serves(plan, reported) is False:
        return f"{name} is served as {model.get('version')} by {model.get('method')}, which this rollout did not bring"
    if not _was_committed_by(operation, model):
        return f"{name} was served like this before"
    if plan.command.name == "deploy" and model.get("previous", "?") is None:
        return _sent(plan, device, Purpose.UNDO, "undeploy", {"model": name})
    return _sent(plan, device, Purpose.UNDO, "rollback", {"model": name})


def serves(plan: Plan, reported: JsonObject | None) -> bool | None:
    """Return whether a device serves what the rollout brings; None where the command does not say what that is."""
    if plan.command.name not in UNDONE_BY_ROLLBACK or reported is None:
        return None
    wanted = _wanted(plan.command)
    model = (reported.get("models") or {}).get(str(plan.command.model))
    if not wanted:
        return None
    return model is not None and all(model.get(key, value) == value for key, value in wanted.items())


def why(operation: Mapping[str, Any]) -> str | None:
    """Return why an operation did not succeed, or waits, in the device's words."""
    error = operation.get("error")
    if isinstance(error, dict):
        return f"{error.get('code')}: {error.get('detail')}"
    detail = operation.get("detail")
    return str(detail) if detail else None


def state_of(operation: Mapping[str, Any]) -> str | None:
    """Return the state that a report on an operation tells, None for a state that is not of the contract."""
    state = operation.get("state")
    return state if state in {each.value for each in State} else None


def _sent(plan: Plan, device: str, purpose: Purpose, name: str, fields: JsonObject) -> tuple[str, JsonObject]:
    return name, {"schema": 1, "id": operation_id(plan, device, purpose), **fields}


def _digest(plan: Plan, device: str) -> str:
    sent = json.dumps([plan.id, device, plan.command.name, plan.command.fields], sort_keys=True)
    return hashlib.sha256(sent.encode()).hexdigest()[:12]


def _wanted(command: Command) -> JsonObject:
    """Return what ``reported`` says of a model that was brought by a command."""
    method = command.fields.get("method", "auto")
    wanted = {} if method == "auto" or command.name == "replan" else {"method": method}
    if command.name != "deploy":
        return wanted
    try:
        deploy = parse("deploy", dump({"schema": 1, "id": "r", **command.fields}))
        manifest = deploy.manifest.manifest() if isinstance(deploy, Deploy) and deploy.manifest else None
    except RefusalError:
        return wanted
    if manifest is not None:
        return {**wanted, "version": manifest.version, "sha256": manifest.files[0].sha256}
    artifact = command.fields.get("artifact") or {}
    return {**wanted, "sha256": artifact.get("sha256")}


def _was_committed_by(operation: JsonObject | None, model: JsonObject) -> bool:
    """Return whether the release was committed as the operation ended; long before, the operation changed nothing."""
    try:
        since, ended = (_moment(text) for text in (model.get("since"), (operation or {}).get("at")))
    except (TypeError, ValueError):
        return True  # a device with many models leaves it out
    return since >= ended - MAX_COMMIT_S


def _moment(text: Any) -> float:
    return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
