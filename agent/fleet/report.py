"""What the fleet measured, as tables and plots of text. Pure: from groups of samples to lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.fleet.figures import FIGURES, by_method, by_row, samples
from agent.fleet.rows import NOTHING, number_of, printable, table
from agent.planning.budget import size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from agent.fleet.figures import Group, Sample, Spread
    from agent.fleet.view import Device

JsonObject = dict[str, Any]
WIDTH = 48
"""Characters of a plot between its edges, where the terminal has room for them."""
LEAST_WIDTH = 16
NO_LIMIT = 10_000


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _signed(value: float) -> str:
    return f"{value:+.1%}"


SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "agreement": ("agreement", _percent),
    "accuracy": ("accuracy", _percent),
    "latency_p50_ms": ("p50", lambda value: f"{value:.1f} ms"),
    "resident_bytes": ("takes", lambda value: size(round(value))),
    "weights_error": ("estimate of weights", _signed),
    "peak_error": ("estimate of peak", _signed),
}
"""Head of each figure and how it is written; an estimate that is too high has a plus."""


def to_json(devices: Iterable[Device]) -> JsonObject:
    """Return the whole report for programs: ``devices``, ``models``, ``by_method`` and ``by_row``."""
    every = list(devices)
    found = samples(every)
    return {
        "devices": len(every),
        "models": len(found),
        "without_record": sum(one.scenario is None for one in found),
        "by_method": [group.to_json() for group in by_method(found)],
        "by_row": [group.to_json() for group in by_row(found)],
    }


def lines(devices: Iterable[Device], plots: Sequence[str] = (), width: int = NO_LIMIT) -> Iterator[str]:
    """Yield the report for people.

    Args:
        devices: of the view.
        plots: which of ``FIGURES`` to draw as well.
        width: characters of a line; where the tables are wider, each of their rows is told below one another.
    """
    every = list(devices)
    found = samples(every)
    bare = sum(one.scenario is None for one in found)
    told = f", {bare} of them without a decision record" if bare else ""
    counts = f"{number_of(len(every), 'device')}, {number_of(len(found), 'model')}"
    yield f"{counts}{told}; median (least … most)"
    if not found:
        return
    yield ""
    yield from _tables(found, width)
    for name in plots:
        yield ""
        yield from plot(by_method(found), name, width)


def plot(groups: Sequence[Group], name: str, width: int = NO_LIMIT) -> Iterator[str]:
    """Yield one line per group: where the figure begins, has its median and ends, all on one scale.

    What would differ in digits that are not shown only is drawn at one place. Where ``width`` characters do not hold
    label, bar and figure, the label has a line of its own.
    """
    head, written = SHOWN[name]
    spreads = [(_label(group), group.figures[name]) for group in groups if name in group.figures]
    if not spreads:
        yield f"{head}: nobody measured it"
        return
    low, high = min(each.least for _, each in spreads), max(each.most for _, each in spreads)
    yield f"{head}, {written(low)} to {written(high)}"
    if written(low) == written(high):
        high = low
    ends = [f"  {written(each.median)}, {each.count}" for _, each in spreads]
    widest = max(len(label) for label, _ in spreads) + 2
    room = width - max(map(len, ends))
    is_beside = room - widest >= LEAST_WIDTH
    bar = max(LEAST_WIDTH, min(WIDTH, room - (widest if is_beside else 2)))
    for (label, each), end in zip(spreads, ends, strict=True):
        if not is_beside:
            yield label
        yield f"{label if is_beside else '':<{widest if is_beside else 2}}{_bar(each, low, high, bar)}{end}"


def _tables(found: Sequence[Sample], width: int) -> Iterator[str]:
    heads = [SHOWN[name][0] for name in FIGURES]
    rows = [(*map(printable, group.key.values()), str(group.devices), *_cells(group)) for group in by_method(found)]
    yield from _within(width, ("hardware", "type", "method", "devices", *heads), rows, keys=3)
    by_rows = by_row(found)
    if not by_rows:
        return
    yield ""
    yield "Rows of the decision matrix, where auto decided:"
    yield from _within(
        width,
        ("row", "planned", "kept", "overruled", "holds", *heads),
        [
            (
                *map(printable, group.key.values()),
                str(group.kept),
                str(group.overruled),
                f"{group.kept / group.models:.0%}",
                *_cells(group),
            )
            for group in by_rows
        ],
        keys=2,
    )


def _within(width: int, head: Sequence[str], rows: Sequence[Sequence[str]], *, keys: int) -> Iterator[str]:
    """Yield a table, or its rows one below another: the first ``keys`` cells say what each is about."""
    found = table(head, rows)
    if max(map(len, found)) <= width:
        yield from found
        return
    names = max(map(len, head[keys:]))
    for row in rows:
        yield ", ".join(f"{name} {cell}" for name, cell in zip(head[:keys], row[:keys], strict=True))
        yield from (f"  {name:<{names}}  {cell}" for name, cell in zip(head[keys:], row[keys:], strict=True))


def _cells(group: Group) -> list[str]:
    return [_cell(group.figures.get(name), SHOWN[name][1]) for name in FIGURES]


def _cell(spread: Spread | None, written: Callable[[float], str]) -> str:
    if spread is None:
        return NOTHING
    median, least, most = written(spread.median), written(spread.least), written(spread.most)
    return median if least == most else f"{median} ({least} … {most})"


def _label(group: Group) -> str:
    return " ".join(printable(value) for value in group.key.values())


def _bar(spread: Spread, low: float, high: float, width: int) -> str:
    def place(value: float) -> int:
        return round((value - low) / (high - low) * (width - 1)) if high > low else 0

    first, middle, last = place(spread.least), place(spread.median), place(spread.most)
    chars = ["─" if first <= index <= last else " " for index in range(width)]
    chars[middle] = "●"
    return "".join(chars)
