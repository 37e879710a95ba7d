"""Counters as Prometheus text, exposition format 0.0.4. Pure.

Labels are model, version and release: all of them the operator's words. Nothing that a client sends becomes a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.serving.stats import Histogram

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """A metric of one name: ``values`` maps labels to a number, or to a histogram for the type ``histogram``."""

    name: str
    kind: str
    text: str
    values: Mapping[Labels, float | Histogram]


def expose(families: Sequence[Family]) -> bytes:
    """Return the text that a Prometheus server scrapes; families without values are left out."""
    lines: list[str] = []
    for family in families:
        if family.values:
            lines += [f"# HELP {family.name} {family.text}", f"# TYPE {family.name} {family.kind}"]
        for labels, value in family.values.items():
            if isinstance(value, (int, float)):
                lines.append(f"{family.name}{_label(labels)} {value}")
            else:
                lines += _histogram(family.name, labels, value)
    return ("\n".join(lines) + "\n").encode()


def _histogram(name: str, labels: Labels, histogram: Histogram) -> list[str]:
    lines, running = [], 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        running += count
        lines.append(f"{name}_bucket{_label((*labels, ('le', str(bound))))} {running}")
    return [*lines, f"{name}_sum{_label(labels)} {histogram.total}", f"{name}_count{_label(labels)} {running}"]


def _label(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "{" + ",".join(f'{key}="{value.translate(escaped)}"' for key, value in labels) + "}"
