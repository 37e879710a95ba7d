"""The comparison as one page: a table and bars, no script, nothing fetched, so it can be mailed and opened anywhere."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from agent.planning.plan import size

if TYPE_CHECKING:
    from collections.abc import Callable

JsonObject = dict[str, Any]
_BAR, _GAP, _LABEL, _WIDTH = 22, 8, 80, 640

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } th, td { padding: .25rem .8rem; border-bottom: 1px solid #8884; text-align: right }
th:first-child, td:first-child { text-align: left } svg { max-width: 100%; height: auto }
text { font: 13px system-ui, sans-serif; fill: currentColor } rect { fill: #2f81c7 }
.error { color: #c33; text-align: left }
"""


def render(table: JsonObject) -> str:
    """Return the whole page for a comparison, see ``agent.workbench.compare``."""
    rows = [row for row in table["rows"] if "error" not in row]
    charts = (
        ("Resident weights", lambda row: row["resident_bytes"], size),
        ("Agreement with the source precision", lambda row: 100 * row["agreement"], lambda value: f"{value:.2f} %"),
        ("Latency of one row, p50", lambda row: row["latency_ms"]["p50"], lambda value: f"{value:.2f} ms"),
    )
    machine = table["machine"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(table['model_path'])}: methods compared</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(table['model_path'])}</h1>",
        f"<p>{escape(str(table['model_type']))}, {table['gate_rows']} rows of {escape(str(table['inputs']))} inputs, ",
        f"measured on {escape(machine['system'])} ({escape(str(machine['device'] or machine['processor']))}).</p>",
        _table(table["rows"]),
        *(f"<h2>{escape(title)}</h2>{_bars(rows, value, text)}" for title, value, text in charts),
        "</body></html>\n",
    ]
    return "".join(parts)


def _table(rows: list[JsonObject]) -> str:
    head = (
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
    body = "".join(f"<tr>{_cells(row, len(head))}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{body}</table>"


def _cells(row: JsonObject, columns: int) -> str:
    name = f"<td>{escape(row['method'])}</td>"
    if "error" in row:
        return f"{name}<td class='error' colspan='{columns - 1}'>{escape(row['error'])}</td>"
    accuracy = (
        "-"
        if row["accuracy"] is None
        else f"{100 * row['accuracy']:.2f} % (source {100 * row['accuracy_source']:.2f} %)"
    )
    cells = (
        f"{row['bits_per_weight']:.3f}",
        size(row["artifact_bytes"]),
        size(row["resident_bytes"]),
        f"{100 * row['agreement']:.2f} %",
        f"{row['cosine']:.5f}",
        accuracy,
        f"{row['latency_ms']['p50']:.2f} ms",
        f"{row['latency_ms']['p99']:.2f} ms",
        f"{row['source_latency_ms']['p50']:.2f} ms",
    )
    return name + "".join(f"<td>{cell}</td>" for cell in cells)


def _bars(rows: list[JsonObject], value: Callable[[JsonObject], float], text: Callable[[Any], str]) -> str:
    """Return horizontal bars from zero, as SVG."""
    longest = max((value(row) for row in rows), default=0) or 1
    height = len(rows) * (_BAR + _GAP)
    drawn = []
    for position, row in enumerate(rows):
        top, length = position * (_BAR + _GAP), max(1.0, (_WIDTH - _LABEL - 110) * value(row) / longest)
        middle = top + _BAR - 6
        drawn.append(
            f"<text x='0' y='{middle}'>{escape(row['method'])}</text>"
            f"<rect x='{_LABEL}' y='{top}' width='{length:.1f}' height='{_BAR}' rx='3'/>"
            f"<text x='{_LABEL + length + 8:.1f}' y='{middle}'>{escape(text(value(row)))}</text>"
        )
    return f"<svg viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}' role='img'>{''.join(drawn)}</svg>"
