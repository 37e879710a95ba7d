"""Small files of ``/proc``, ``/sys`` and ``/etc``: read whole, or None. A sensor that is off fails when it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def text(path: Path) -> str | None:
    """Return a file's text without the blanks and NULs around it; None when it cannot be read or is empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t") or None
    except (OSError, ValueError):
        return None


def integer(path: Path) -> int | None:
    """Return the number that a file begins with, as in ``48250`` and ``32760 ma``; None without one."""
    words = (text(path) or "").split()
    try:
        return int(words[0]) if words else None
    except ValueError:
        return None


def entries(folder: Path, pattern: str = "*") -> list[Path]:
    """Return what a folder holds, in order; nothing when it cannot be read."""
    try:
        return sorted(folder.glob(pattern), key=_natural)
    except OSError:
        return []


def first_text(paths: Iterable[Path]) -> str | None:
    """Return the text of the first file that has any."""
    return next((found for found in map(text, paths) if found), None)


def _natural(path: Path) -> tuple[int, str]:
    """``thermal_zone2`` before ``thermal_zone10``."""
    return len(path.name), path.name
