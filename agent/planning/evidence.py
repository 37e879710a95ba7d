"""What measurement says against the matrix: when one method's answers are better than another's. Pure.

Two measurements of the same rows differ by chance. One method counts as better only if the difference is larger than
one standard error of it, or the matrix would be overruled by the luck of a few drawings.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CLOSER = 0.9
"""On made-up inputs the distance between the answers (1 - cosine) has to shrink to this part: there is no standard
error to go by, and a classifier's best class on noise means nothing."""


def is_perfect(gate: Mapping[str, Any]) -> bool:
    """Return whether nothing can agree better: every row of real data keeps its answer."""
    return gate.get("inputs") != "synthetic" and gate.get("agreement") == 1.0


def is_better(gate: Mapping[str, Any], than: Mapping[str, Any]) -> bool:
    """Return whether ``gate`` measured clearly better answers than ``than``, on the same inputs.

    On real data the agreement with the source decides, on made-up inputs the distance of the answers.
    """
    if gate.get("inputs") == "synthetic":
        closer, farther = gate.get("cosine"), than.get("cosine")
        return closer is not None and farther is not None and 1 - closer < CLOSER * (1 - farther)
    ours, theirs = gate.get("agreement"), than.get("agreement")
    if ours is None or theirs is None:
        return False
    rows = max(1, int(gate["rows"]))
    error = math.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / rows)
    return bool(ours - theirs > error)


def summary(method: str, result: Mapping[str, Any], complaints: Sequence[str]) -> dict[str, Any]:
    """Return one measured method for the decision record."""
    gate = result["gate"]
    return {
        "method": method,
        "passes": not complaints,
        "complaints": list(complaints),
        "agreement": gate.get("agreement"),
        "cosine": gate.get("cosine"),
        "accuracy": gate.get("accuracy"),
        "latency_p50_ms": gate["latency_ms"]["p50"],
        "resident_bytes": result["resident_bytes"],
    }


def told(gate: Mapping[str, Any]) -> str:
    """Return how good the answers are, in words."""
    if gate.get("inputs") == "synthetic":
        cosine = gate.get("cosine")
        return "cosine not known" if cosine is None else f"cosine {cosine:.4f} on made-up inputs"
    agreement = gate.get("agreement")
    return "agreement not known" if agreement is None else f"agreement {agreement:.2%} on {gate['rows']} rows"
