"""``nibbled plan``: say what a device would do with a checkpoint, and why, without doing it."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy as DownloadPolicy
from agent.deployment.runner import WorkWatch
from agent.planning.budget import size
from agent.planning.explain import explain
from agent.planning.memory import Footprint
from agent.planning.methods import METHODS
from agent.planning.plan import Plan, Policy, plan
from agent.workbench import builds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.planning.budget import Budget
    from agent.workbench.profiles import Profile

JsonObject = dict[str, Any]
SCHEMES = frozenset({"http", "https", "file"})


@dataclass(frozen=True)
class Question:
    """What is to be planned.

    Attributes:
        checkpoint: a path, or a URL with http, https or file.
        model_type: its name, or ``auto``.
        method: a method's name, or ``auto``.
        profile: the device, None for this one.
        limit_bytes: a fixed budget, or None.
        reserve_bytes: what stays free.
        policy: the matrix, and whether it alone decides.
    """

    checkpoint: str
    model_type: str = "auto"
    method: str = "auto"
    profile: Profile | None = None
    limit_bytes: int | None = None
    reserve_bytes: int = builds.RESERVE_BYTES
    policy: Policy = field(default_factory=Policy)


def answer(question: Question, on_progress: builds.OnProgress) -> JsonObject:
    """Return the decision record with the checkpoint and the device it is for.

    Raises:
        StepError: the checkpoint cannot be fetched, opened or recognised.
    """
    with _local(question.checkpoint, on_progress) as path:
        found = builds.inspect(path, question.model_type, on_progress)
    device = _device(question)
    footprint = Footprint.from_json(found["footprint"])
    made = plan(
        footprint,
        device.budget,
        requested=question.method,
        usable=device.usable,
        policy=question.policy,
        kernel=device.kernel,
        overhead_bytes=device.overhead_bytes,
    )
    record = made.to_json()
    return {
        "checkpoint": {
            "source": question.checkpoint,
            **{name: found[name] for name in ("model_type", "num_classes", "options", "notes", "bytes")},
            "weights": len(footprint.matrices),
            "float32_bytes": 4 * sum(footprint.matrices) + footprint.plain_bytes,
        },
        "device": _described(device.name, made.budget, question.profile),
        "decision": {**record, "candidates": _weighed(made, question.profile), "explanation": explain(record)},
    }


def lines(record: JsonObject) -> list[str]:
    """Return the record as people read it."""
    checkpoint, device, decision = (record[name] for name in ("checkpoint", "device", "decision"))
    what = f"{checkpoint['model_type']}, {checkpoint['num_classes']} classes"
    told = [
        f"{checkpoint['source']}: {what}, {size(checkpoint['float32_bytes'])} of weights in float32",
        f"{device['name']}: {device['title']}",
        *([f"  note: {device['note']}"] if device["note"] else []),
        "",
        *_table(decision),
        "",
        *decision["explanation"],
    ]
    if decision["alternatives"]:
        told.append(f"Measured besides, for they take no more memory: {', '.join(decision['alternatives'])}.")
    if decision["fallbacks"]:
        told.append(f"If the gate refuses it, in this order: {', '.join(decision['fallbacks'])}.")
    return told + [f"note: {note}" for note in checkpoint["notes"]]


def _table(decision: JsonObject) -> list[str]:
    writes = any(each["texts_bytes"] for each in decision["candidates"])
    head = ("  method", "weights", "+ working", *(["+ a text"] if writes else []), "= needed", "fits", "time to read")
    rows: list[tuple[str, ...]] = [head]
    for each in decision["candidates"]:
        mark = "→" if each["method"] == decision["method"] else " "
        floor = each["floor_ms"]
        rows.append(
            (
                f"{mark} {each['method']}",
                size(each["weights_bytes"]),
                size(each["working_bytes"]),
                *([size(each["texts_bytes"])] if writes else []),
                size(each["estimated_bytes"]),
                "yes" if each["fits"] else "no",
                "-" if floor is None else f"{floor:.3f} ms",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _weighed(made: Plan, profile: Profile | None) -> list[JsonObject]:
    """Return the candidates, each with the time that reading its weights once takes: no call can be faster."""
    bandwidth = profile.bandwidth_gb_s if profile else None
    return [
        {
            **each.to_json(),
            "floor_ms": None if bandwidth is None else each.estimate.weights_bytes / (bandwidth * 1e6),
        }
        for each in made.candidates
    ]


def _device(question: Question) -> builds.Device:
    profile = question.profile
    if profile is None:
        return builds.this_device(question.reserve_bytes, question.limit_bytes)
    budget = profile.budget(question.reserve_bytes, question.limit_bytes)
    return builds.Device(profile.name, budget, tuple(METHODS), profile.kernel)


def _described(name: str, budget: Budget, profile: Profile | None) -> JsonObject:
    return {
        "name": name,
        "title": profile.title if profile else "this device, as it is now",
        "note": profile.note if profile else None,
        "gpu": "none" if not budget.has_gpu else "integrated" if budget.is_integrated else "dedicated",
        "capability": list(budget.capability) if budget.capability else None,
        "bandwidth_gb_s": profile.bandwidth_gb_s if profile else None,
    }


@contextlib.contextmanager
def _local(checkpoint: str, on_progress: builds.OnProgress) -> Iterator[Path]:
    """Yield the checkpoint's path, fetched for the moment if it is a URL."""
    parts = urlsplit(checkpoint)
    if parts.scheme not in SCHEMES:
        yield Path(checkpoint)
        return
    # Somebody at a keyboard names the URL, not the network: the hosts that a device must not be led to are allowed.
    policy = DownloadPolicy(SCHEMES, frozenset({parts.hostname} if parts.hostname else ()))
    with tempfile.TemporaryDirectory(prefix="nibbled-plan-") as folder:
        path = Path(folder) / (Path(parts.path).name or "checkpoint")
        Downloader(policy).fetch(checkpoint, path, None, WorkWatch(on_progress))
        yield path
