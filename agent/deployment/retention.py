"""Which files are still needed. Pure: what is served, what could be rolled back to, what is being worked on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.deployment.facts import source_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.deployment.machine import Operation
    from agent.deployment.models import Served


def in_use(served: Mapping[str, Served], operations: Iterable[Operation]) -> set[str]:
    """Return the paths of the artifacts that are served, could be rolled back to, or are being brought into service."""
    releases = [release for item in served.values() for release in (item.current, item.previous) if release]
    begun = [operation.facts["release"]["artifact"] for operation in operations if operation.facts.get("release")]
    return {*(release.artifact for release in releases), *begun}


def needed(served: Mapping[str, Served], operations: Iterable[Operation]) -> set[str]:
    """Return the digests of every checkpoint and dataset that must stay in the store."""
    keep: set[str | None] = set()
    for item in served.values():
        keep |= {item.current.sha256, item.dataset, item.previous.sha256 if item.previous else None}
    for operation in operations:
        keep |= {operation.facts.get("sha256"), operation.facts.get("dataset")}
        if operation.command == "deploy":
            dataset = (operation.request.get("gate") or {}).get("dataset") or {}
            keep |= {source_of(operation.request).sha256, dataset.get("sha256")}
    return {digest for digest in keep if digest}
