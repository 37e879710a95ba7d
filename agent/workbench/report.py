"""The comparison as one page: a table and bars, no script, nothing fetched, so it can be mailed and opened anywhere."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

JsonObject = dict[str, Any]
_BAR, _GAP, _LABEL, _WIDTH = 22, 8, 80, 640

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } th, td { padding: .25rem .8rem; border-bottom: 1px solid #8884; text-align: right }
th:first-child, td:first-child { text-align: left } svg { max-width: 100%; height: auto }
text { font: 13px system-ui, sans-serif; fill: currentColor } rect { fill: #2f81c7 } rect.kept { fill: #2e9e5b }
tr.kept { font-weight: bold }
.error { color: #c33; text-align: left }
"""


def agreement(gate: Mapping[str, Any]) -> str:
    """Return the gate's agreement for people, saying of what where it is not of classes."""
    share = gate["agreement"]
    if gate.get("answer", "classes") != "embedding":
        return percent(share)
    return "not told by fewer than 3 rows" if share is None else f"{percent(share)} of nearest neighbours kept"


def percent(share: float | None) -> str:
    """Return a share between 0 and 1 for people; ``-`` for what was not measured."""
    return "-" if share is None else f"{100 * share:.2f} %"


def verdict(table: Mapping[str, Any]) -> str:
    """Return what ``auto`` keeps and why, in one sentence."""
    auto = table["auto"]
    if auto["keeps"] is None or not auto["overruled"]:
        return " | ".join((f"auto keeps {auto['keeps'] or 'none'} here: {auto['reason']}", *auto["overruled"]))
    measured = " | ".join(auto["overruled"])
    return f"auto keeps {auto['keeps']} here: {measured}; the plan was {auto['planned']}: {auto['reason']}"


def render(table: Mapping[str, Any]) -> str:
    """Return the whole page for a comparison, see ``agent.workbench.compare``."""
    rows = [row for row in table["rows"] if "error" not in row]
    charts = (
        ("Resident weights", lambda row: row["resident_bytes"], lambda row: size(row["resident_bytes"])),
        (
            "Agreement with the source precision",
            lambda row: row["gate"]["agreement"] or 0,
            lambda row: percent(row["gate"]["agreement"]),
        ),
        ("Latency of one row, p50", _latency, lambda row: f"{_latency(row):.2f} ms"),
    )
    machine, kept = table["machine"], table["auto"]["keeps"]
    inputs = f"{rows[0]['gate']['rows']} {rows[0]['gate']['inputs']} inputs" if rows else "nothing"
    told = (
        f"{table['model_type']}, measured with {inputs} on {machine['system']} ({machine['processor']}, "
        f"device {machine['device']})."
    )
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(table['model_path'])}: methods compared</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(table['model_path'])}</h1><p>{escape(told)}</p><p>{escape(verdict(table))}</p>",
        _table(table["rows"], kept),
        *(f"<h2>{escape(title)}</h2>{_bars(rows, kept, value, text)}" for title, value, text in charts),
        "</body></html>\n",
    ]
    return "".join(parts)


def _latency(row: JsonObject) -> float:
    return float(row["gate"]["latency_ms"]["p50"])


_HEAD = (
    "method",
    "bits a weight",
    "artifact",
    "resident",
    "agreement",
    "cosine",
    "accuracy",
    "p50",
    "p99",
    "source p50",
)


def _table(rows: list[JsonObject], kept: str | None) -> str:
    body = "".join(f"<tr{_mark(row, kept)}>{_cells(row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in _HEAD)}</tr>{body}</table>"


def _mark(row: JsonObject, kept: str | None) -> str:
    return " class='kept'" if row["method"] == kept else ""


def _cells(row: JsonObject) -> str:
    name = f"<td>{escape(row['method'])}</td>"
    if "error" in row:
        return f"{name}<td class='error' colspan='{len(_HEAD) - 1}'>{escape(row['error'])}</td>"
    gate = row["gate"]
    source = "" if gate["accuracy_source"] is None else f" (source {percent(gate['accuracy_source'])})"
    cells = (
        f"{row['bits_per_weight']:.3f}",
        size(row["artifact_bytes"]),
        size(row["resident_bytes"]),
        agreement(gate),
        "not finite" if gate["cosine"] is None else f"{gate['cosine']:.5f}",
        f"{percent(gate['accuracy'])}{source}",
        f"{gate['latency_ms']['p50']:.2f} ms",
        f"{gate['latency_ms']['p99']:.2f} ms",
        f"{gate['source_latency_ms']['p50']:.2f} ms",
    )
    return name + "".join(f"<td>{cell}</td>" for cell in cells)


def _bars(
    rows: list[JsonObject], kept: str | None, value: Callable[[JsonObject], float], text: Callable[[JsonObject], str]
) -> str:
    """Return horizontal bars from zero, as SVG."""
    longest = max((value(row) for row in rows), default=0) or 1
    height = len(rows) * (_BAR + _GAP)
    drawn = []
    for position, row in enumerate(rows):
        top, length = position * (_BAR + _GAP), max(1.0, (_WIDTH - _LABEL - 110) * value(row) / longest)
        middle = top + _BAR - 6
        drawn.append(
            f"<text x='0' y='{middle}'>{escape(row['method'])}</text>"
            f"<rect{_mark(row, kept)} x='{_LABEL}' y='{top}' width='{length:.1f}' height='{_BAR}' rx='3'/>"
            f"<text x='{_LABEL + length + 8:.1f}' y='{middle}'>{escape(text(row))}</text>"
        )
    return f"<svg viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}' role='img'>{''.join(drawn)}</svg>"
