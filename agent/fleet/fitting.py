"""A table of devices on a terminal that is too narrow for it: which columns are shown, and how wide. Pure.

Who it is must stay readable: rows whose ids are cut at the end cannot be told apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = 2
"""Cells between two columns."""
LEAST_WHAT = 20
"""Cells below which the last column is not cut before others are left out."""
WHO, WHAT = "device", "what"
_LEFT_OUT = ("room", "takes", "agrees", "version", "method", "health", "model", WHAT, "presence")
"""The first to go stands first; the device stays."""
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def fitted(head: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> dict[str, int]:
    """Return the columns that are shown with their widths, in the order of ``head``.

    Args:
        head: names of all columns, ``device`` and ``what`` among them.
        cells: a text for each of them, row by row.
        width: cells of the terminal.
    """
    widths = {
        name: max(map(cell_len, column)) for name, column in zip(head, zip(head, *cells, strict=True), strict=True)
    }
    for name in ("", *_LEFT_OUT):
        widths.pop(name, None)
        over = sum(widths.values()) + GAP * (len(widths) - 1) - width
        if over <= 0:
            return widths
        if widths.get(WHAT, 0) - over >= LEAST_WHAT:
            return {**widths, WHAT: widths[WHAT] - over}
    return {WHO: width}


def cut(text: str, width: int) -> str:
    """Return a text that has at most ``width`` cells: what is too long is cut at its end."""
    return text if cell_len(text) <= width else chop_cells(text, max(1, width - 1))[0] + _ELLIPSIS


def cut_inside(text: str, width: int) -> str:
    """Return a text of one-cell characters in at most ``width``: what is too long is cut in its middle."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return text[: width - 1 - end] + _ELLIPSIS + text[len(text) - end :]
