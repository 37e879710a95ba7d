"""The agent's status as lines for a terminal. Pure: from the body of ``status.json`` to text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

JsonObject = dict[str, Any]
OPERATIONS = 5
"""The newest that are shown."""
LABEL_WIDTH = 11
UNKNOWN = "-"


def lines(status: Mapping[str, Any], width: int | None = None) -> list[str]:
    """Return the screen, each line at most ``width`` characters; whole lines without a width."""
    whole = list(_lines(status))
    return whole if width is None else [each if len(each) <= width else f"{each[: width - 1]}…" for each in whole]


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    health = status["health"]
    yield f"{status['device_id']}  {health['status']}  nibbled {status.get('agent', UNKNOWN)}"
    for reason in health.get("reasons", ()):
        yield f"  ! {reason}"
    yield ""
    yield from _table(
        ("model", "version", "method", "resident", "agreement", "requests", "p50", "before"), _models(status)
    )
    yield ""
    yield from _table(("operation", "command", "model", "state", "what"), _operations(status))
    yield ""
    yield from (f"{label:<{LABEL_WIDTH}}{text}" for label, text in _facts(status))


def _models(status: Mapping[str, Any]) -> list[Sequence[str]]:
    live = status["health"].get("models") or {}
    return [_model(name, model, live.get(name) or {}) for name, model in (status.get("models") or {}).items()]


def _model(name: str, model: Mapping[str, Any], live: Mapping[str, Any]) -> Sequence[str]:
    previous, p50 = model.get("previous"), (live.get("latency_ms") or {}).get("p50")
    agreement = model.get("agreement")
    return (
        name,
        str(model.get("version") or UNKNOWN),
        str(model.get("method") or UNKNOWN),
        _size(model.get("resident_bytes")),
        UNKNOWN if agreement is None else f"{100 * agreement:.1f} %",
        str(live.get("requests", UNKNOWN)),
        UNKNOWN if p50 is None else f"{p50:.1f} ms",
        f"{previous['version']} {previous['method']}" if previous else UNKNOWN,
    )


def _operations(status: Mapping[str, Any]) -> list[Sequence[str]]:
    return [_operation(each) for each in (status.get("operations") or ())[:OPERATIONS]]


def _operation(each: Mapping[str, Any]) -> Sequence[str]:
    error, decision = each.get("error"), each.get("decision") or {}
    what = f"{error['code']}: {error['detail']}" if error else each.get("phase") or decision.get("reason") or ""
    return (each["id"], each["command"], each.get("model") or UNKNOWN, each["state"], str(what))


def _facts(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    health = status["health"]
    memory = (health.get("device") or {}).get("memory") or {}
    if memory:
        available, total = _size(memory.get("available_bytes")), _size(memory.get("total_bytes"))
        told = f"{available} of {total} available according to {memory.get('source', UNKNOWN)}"
        yield "memory", f"{told}; {_size(memory.get('bytes'))} for models"
    agent, server = _size(health.get("supervisor_rss_bytes")), _size(health.get("server_rss_bytes"))
    yield "processes", f"agent {agent}, server {server}, {health.get('server_starts', UNKNOWN)} starts"
    yield "disk", f"{_size((health.get('disk') or {}).get('free_bytes'))} free"
    yield "broker", f"{status.get('broker', UNKNOWN)}, {_connection(status)}"
    yield "inference", str(status.get("inference", UNKNOWN))


def _connection(status: Mapping[str, Any]) -> str:
    connected = (status.get("connection") or {}).get("connected")
    return UNKNOWN if connected is None else "connected" if connected else "not connected"


def _size(count: int | None) -> str:
    return UNKNOWN if count is None else size(count)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table whose columns are as wide as what is in them; without rows a line that says so."""
    if not rows:
        yield f"no {head[0]}s"
        return
    cells = [head, *rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(head))]
    for row in cells:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
