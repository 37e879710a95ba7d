"""The fleet on a terminal: a table that is kept up to date, the devices that need a look first, with keys to scroll.

What a device said goes through ``printable`` before it gets here, and is never read as markup.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from agent.fleet.fitting import WHO, cut, cut_inside, fitted
from agent.fleet.rows import HEAD, Row, rows, summary
from agent.fleet.view import DEGRADED, FAILING, OFFLINE, ONLINE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from rich.console import RenderableType

    from agent.fleet.view import Device

COLOURS = {ONLINE: "green", OFFLINE: "red", FAILING: "red", DEGRADED: "yellow", "ok": "green"}
_RIGHT = ("takes", "room", "agrees")
_FRAME_LINES = 4
"""Summary, head of the table, its rule, and the line that names the keys."""
_KEYS = {b"j": 1, b"\x1b[B": 1, b"k": -1, b"\x1b[A": -1, b" ": 20, b"\x1b[6~": 20, b"b": -20, b"\x1b[5~": -20}
QUIT = b"q"


def coloured(found: Sequence[Row], width: int) -> Table:
    """Return the table as it fits into a terminal.

    Args:
        found: its rows.
        width: cells of the terminal.
    """
    every = [row.cells() for row in found]
    widths = fitted(HEAD, every, width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, cells in widths.items():
        table.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=True, width=cells)
    for row in every:
        shown = {name: text for name, text in zip(HEAD, row, strict=True) if name in widths}
        table.add_row(*(Text(_cut(name, text, widths[name]), COLOURS.get(text, "")) for name, text in shown.items()))
    return table


def _cut(name: str, text: str, width: int) -> str:
    return (cut_inside if name == WHO else cut)(text, width)


def lost_line(where: str, now: datetime, gone_s: float) -> str:
    """Return what to say while nothing is heard any more.

    Args:
        where: host and port of the broker.
        now: wall time, in the zone in which it is to be told.
        gone_s: seconds since the connection was cut.
    """
    since = now - timedelta(seconds=gone_s)
    return f"broker {where} lost since {since:%H:%M:%S} ({gone_s:.0f} s); what is below is of before"


class Screen:
    """What is shown of the fleet: which part of the rows.

    Args:
        height: lines of the terminal.
        width: its columns.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height = height
        self.width = width
        self._first = 0

    def scroll(self, by: int) -> None:
        """Move down, or up where ``by`` is negative."""
        self._first = max(0, self._first + by)

    def render(self, devices: Iterable[Device], now_s: float, where: str, lost: str = "") -> RenderableType:
        """Return the screen.

        Args:
            devices: of the view.
            now_s: monotonic seconds.
            where: the broker.
            lost: what to say first while the broker is lost, such as ``lost_line`` returns; empty otherwise.
        """
        every = list(devices)
        found = sorted((row for device in every for row in rows(device, now_s)), key=_order)
        room = max(1, self.height - _FRAME_LINES - bool(lost))
        self._first = min(self._first, max(0, len(found) - room))
        part = found[self._first : self._first + room]
        last = self._first + len(part)
        place = f"rows {self._first + 1}-{last} of {len(found)}" if found else "nothing yet"
        keys = Text(f"{place}; {where}; q ends, j k space b scroll", style="dim", no_wrap=True, overflow="ellipsis")
        counted = Text(summary(every, now_s), no_wrap=True, overflow="ellipsis")
        alarm = [Text(lost, style="bold red", no_wrap=True, overflow="ellipsis")] if lost else []
        return Group(*alarm, counted, coloured(part, self.width), keys)


def _order(row: Row) -> tuple[int, str, str]:
    return row.urgency, row.device, row.model or ""


class Keyboard:
    """Keys as they are pressed; nobody's where stdin is no terminal."""

    def __init__(self) -> None:
        self._descriptor = sys.stdin.fileno() if sys.stdin.isatty() else None

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Hand over keys at once while the block runs, without showing them."""
        if self._descriptor is None:
            yield
            return
        before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)
        try:
            yield
        finally:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, before)

    def pressed(self, timeout_s: float) -> bytes:
        """Return what was pressed, waiting for it; nothing where nothing was."""
        if self._descriptor is None:
            select.select([], [], [], timeout_s)
            return b""
        ready, _, _ = select.select([self._descriptor], [], [], timeout_s)
        return os.read(self._descriptor, 16) if ready else b""


def lines_of(key: bytes) -> int:
    """Return by how many lines a key scrolls, 0 for another key."""
    return _KEYS.get(key, 0)
