"""What a fleet measured: one sample per model of a device, and what many of them come to. Pure.

The figures are those of the decision record that every ``reported`` carries: agreement and accuracy by the gate,
latency by the canary on the device itself, memory as it was measured, and how far the estimates of memory were off. A
device whose report was too large for its records has a sample without them.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from agent.fleet.rows import number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.fleet.view import Device

JsonObject = dict[str, Any]
UNKNOWN = "unknown"
FIGURES = ("agreement", "accuracy", "latency_p50_ms", "resident_bytes", "weights_error", "peak_error")
"""What is aggregated of a sample, in the order of tables."""


@dataclass(frozen=True)
class Sample:
    """One model on one device.

    Attributes:
        device, hardware: its id, and the board or GPU, ``unknown`` where it does not say.
        model, version, model_type, method: what is served.
        chosen_by: ``auto`` or ``operator``.
        scenario: the row of the decision matrix that held, None where nothing was decided.
        planned: the method that the row asked for; measurement may have overruled it.
        agreement, accuracy: of the gate, 0 to 1.
        latency_p50_ms: of the canary, one batch through the server of the device.
        resident_bytes: what the weights take.
        weights_error, peak_error: estimate over measurement, less one, of the weights and of the process at its peak.
    """

    device: str
    hardware: str
    model: str
    version: str
    model_type: str
    method: str
    chosen_by: str
    scenario: str | None
    planned: str | None
    agreement: float | None
    accuracy: float | None
    latency_p50_ms: float | None
    resident_bytes: int | None
    weights_error: float | None
    peak_error: float | None

    @property
    def is_kept(self) -> bool | None:
        """Whether what the row of the matrix asked for was kept; None where no row was asked, or by an operator."""
        return None if self.planned is None or self.chosen_by != "auto" else self.planned == self.method


@dataclass(frozen=True)
class Spread:
    """How a figure is spread over the samples that have it.

    Attributes:
        count: how many have it.
        least, median, most: of those.
    """

    count: int
    least: float
    median: float
    most: float

    def to_json(self) -> JsonObject:
        """Return ``{"count", "min", "median", "max"}``."""
        return {"count": self.count, "min": self.least, "median": self.median, "max": self.most}


@dataclass(frozen=True)
class Group:
    """Samples that have something in common.

    Attributes:
        key: what that is, by name.
        devices: how many they are.
        models: how many samples.
        kept, overruled: how often what the matrix asked for was served, and how often measurement chose another.
        figures: a spread for each of ``FIGURES`` that somebody has.
    """

    key: dict[str, str]
    devices: int
    models: int
    kept: int
    overruled: int
    figures: dict[str, Spread]

    def to_json(self) -> JsonObject:
        """Return the group for programs."""
        spreads = {name: spread.to_json() for name, spread in self.figures.items()}
        counted = {"devices": self.devices, "models": self.models, "kept": self.kept, "overruled": self.overruled}
        return {**self.key, **counted, "figures": {name: spreads.get(name) for name in FIGURES}}


def samples(devices: Iterable[Device]) -> list[Sample]:
    """Return a sample for every model of every device, by device and model."""
    return [_sample(device, name, body) for device in devices for name, body in sorted(device.models.items())]


def by_method(found: Iterable[Sample]) -> list[Group]:
    """Group by hardware, model type and method."""
    return _grouped(found, lambda one: {"hardware": one.hardware, "model_type": one.model_type, "method": one.method})


def by_row(found: Iterable[Sample]) -> list[Group]:
    """Group by the row of the decision matrix and what it asked for; what an operator chose is no word on a row."""
    decided = [one for one in found if one.is_kept is not None]
    return _grouped(decided, lambda one: {"scenario": str(one.scenario), "planned": str(one.planned)})


def csv_rows(found: Iterable[Sample]) -> list[list[str]]:
    """Return a head and a row for each sample, as text; empty cells where there is no figure."""
    names = [field.name for field in fields(Sample)]
    cells = [["" if (value := getattr(one, name)) is None else str(value) for name in names] for one in found]
    return [names, *cells]


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return how the values that are there are spread; None where none is."""
    known = [value for value in values if value is not None]
    return Spread(len(known), min(known), statistics.median(known), max(known)) if known else None


def _grouped(found: Iterable[Sample], key: Callable[[Sample], dict[str, str]]) -> list[Group]:
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for one in found:
        groups.setdefault(tuple(key(one).values()), []).append(one)
    return [_group(key(members[0]), members) for _, members in sorted(groups.items())]


def _group(key: dict[str, str], members: Sequence[Sample]) -> Group:
    spreads = {name: spread([getattr(one, name) for one in members]) for name in FIGURES}
    verdicts = [one.is_kept for one in members]
    return Group(
        key=key,
        devices=len({one.device for one in members}),
        models=len(members),
        kept=verdicts.count(True),
        overruled=verdicts.count(False),
        figures={name: found for name, found in spreads.items() if found is not None},
    )


def _sample(device: Device, name: str, body: JsonObject) -> Sample:
    decision = _object(body.get("decision"))
    measured, errors = _object(decision.get("measured")), _object(decision.get("estimate_error"))
    latency = _object(_object(measured.get("canary")).get("latency_ms"))
    scenario, planned = decision.get("scenario"), decision.get("planned")
    return Sample(
        device=device.name,
        hardware=_hardware(device),
        model=name,
        version=str(body.get("version", UNKNOWN)),
        model_type=str(body.get("model_type", UNKNOWN)),
        method=str(body.get("method", UNKNOWN)),
        chosen_by=str(body.get("chosen_by", UNKNOWN)),
        scenario=None if scenario is None else str(scenario),
        planned=None if planned is None else str(planned),
        agreement=number(body.get("agreement")),
        accuracy=number(body.get("accuracy")),
        latency_p50_ms=number(latency.get("p50")),
        resident_bytes=number(body.get("resident_bytes")),
        weights_error=number(errors.get("weights")),
        peak_error=number(errors.get("process_peak")),
    )


def _hardware(device: Device) -> str:
    """Return what kind of box it is: its board, else its GPU."""
    said = device.said.get("capabilities", {})
    gpu = _object(_object(said.get("versions")).get("cuda")).get("name")
    board = _object(_object(device.said.get("health", {}).get("device")).get("board")).get("model")
    return str(said.get("hardware") or board or gpu or UNKNOWN)


def _object(value: Any) -> JsonObject:
    return value if isinstance(value, dict) else {}
