"""The report as one HTML file: no script, nothing fetched, everything that is not ours escaped. Pure."""

from __future__ import annotations

from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

from agent.fleet.rollout.report import counted, told

if TYPE_CHECKING:
    from collections.abc import Iterator

JsonObject = dict[str, Any]
_STYLE = """
:root { color-scheme: light dark; --good: #2e7d32; --bad: #c62828; --open: #1565c0; --idle: #8888; --line: #8884; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.bar { width: 30%; min-width: 12rem; } time, .number { font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { display: block; width: 100%; height: 1rem; } .good { fill: var(--good); color: var(--good); }
.bad { fill: var(--bad); color: var(--bad); } .open { fill: var(--open); color: var(--open); }
.idle { fill: var(--idle); } summary { cursor: pointer; margin: 1.5rem 0 .5rem; font-weight: 600; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def html(report: JsonObject) -> str:
    """Return the page for a report as `agent.fleet.rollout.report.build` makes it."""
    title = escape(f"Rollout {report['rollout']}: {report['status']}")
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body>",
            *_head(report),
            *_waves(report),
            *_devices(report),
            *_timeline(report),
            "</body></html>\n",
        )
    )


def _head(report: JsonObject) -> Iterator[str]:
    about = f" of {report['model']}" if report["model"] else ""
    kind = {"finished": "good", "aborted": "bad", "aborting": "bad"}.get(report["status"], "open")
    yield f'<h1>{escape(report["rollout"])} <span class="{kind}">{escape(report["status"])}</span></h1>'
    yield f"<p>{escape(report['command'] + about)}, from {_time(report['begun'])} to {_time(report['last'])}"
    yield "".join(f"<br>{escape(report[name])}" for name in ("reason", "waits") if report[name]) + "</p>"


def _waves(report: JsonObject) -> Iterator[str]:
    yield "<table><thead><tr><th>wave<th>begun<th>succeeded enough<th>devices<th></tr></thead><tbody>"
    for wave in report["waves"]:
        cells = (escape(wave["name"]), _time(wave["begun"]), _time(wave["complete"]), escape(counted(wave)))
        yield f"<tr>{''.join(f'<td>{cell}' for cell in cells)}<td class=bar>{_shares(wave)}</tr>"
    yield "</tbody></table>"


def _shares(wave: JsonObject) -> str:
    """Return a bar of how much of a wave went how."""
    parts = (
        ("good", wave["succeeded"]),
        ("bad", wave["failed"]),
        ("open", wave["in_flight"]),
        ("idle", wave["skipped"]),
    )
    bars, x = "", 0.0
    for kind, number in parts:
        width = 100 * number / wave["total"] if wave["total"] else 0.0
        bars += _bar(kind, x, width)
        x += width
    return _svg(bars, counted(wave))


def _devices(report: JsonObject) -> Iterator[str]:
    first, last = _seconds(report["begun"]), _seconds(report["last"])
    length = max(last - first, 1e-3)
    yield "<details open><summary>Devices</summary><table>"
    yield "<thead><tr><th>device<th>wave<th>what became of it<th>seconds<th>when</tr></thead><tbody>"
    for device in report["devices"]:
        began = device["began"] or device["ended"]
        bar = ""
        if began is not None:
            x = 100 * (_seconds(began) - first) / length
            end = last if device["ended"] is None else _seconds(device["ended"])
            bar = _bar(_kind(device), x, max(0.5, 100 * (end - first) / length - x))
        took = "" if device["took_s"] is None else f"{device['took_s']:g}"
        text = told(device)
        yield (
            f"<tr><td>{escape(device['device'])}<td>{escape(device['wave'])}<td class={_kind(device)}>{escape(text)}"
            f"<td class=number>{took}<td class=bar>{_svg(bar, text)}</tr>"
        )
    yield "</tbody></table></details>"


def _timeline(report: JsonObject) -> Iterator[str]:
    yield "<details><summary>Timeline</summary><table><tbody>"
    for entry in report["timeline"]:
        yield f"<tr><td>{_time(entry['at'])}<td>{escape(entry['text'])}</tr>"
    yield "</tbody></table></details>"


def _kind(device: JsonObject) -> str:
    if device["outcome"] is None:
        return "open" if device["stage"] == "started" else "idle"
    return {"succeeded": "good", "skipped": "idle"}.get(device["outcome"], "bad")


def _bar(kind: str, x: float, width: float) -> str:
    return f'<rect class="{kind}" x="{x:.2f}" y="2" width="{width:.2f}" height="8"/>' if width else ""


def _svg(content: str, text: str) -> str:
    return (
        f'<svg viewBox="0 0 100 12" preserveAspectRatio="none" role="img"><title>{escape(text)}</title>{content}</svg>'
    )


def _time(text: str | None) -> str:
    return "" if text is None else f"<time>{escape(text)}</time>"


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
