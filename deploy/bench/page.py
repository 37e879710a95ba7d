"""The page of figures, `docs/benchmarks.md`: each benchmark owns the part between its two markers and replaces it.

A part is what the benchmark printed, with the date and the machine above it. The text around the parts is written by
hand and never touched. Nothing is measured here.
"""

from __future__ import annotations

import os
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
_CPU_INFO = Path("/proc/cpuinfo")
_MEMORY_INFO = Path("/proc/meminfo")


class MarkerError(ValueError):
    """A page without the two markers, in order, of a benchmark."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are figures."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def replaced(page: str, name: str, part: str) -> str:
    """Return ``page`` with ``part`` between the markers of the benchmark called ``name``.

    Raises:
        MarkerError: the markers are not both there, once each and in order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise MarkerError(f"the page needs one line {begin} and after it one line {end}")
    before, after = page[: page.index(begin)], page[page.index(end) + len(end) :]
    return f"{before}{begin}\n{part.strip()}\n{end}{after}"


def publish(name: str, part: str, path: Path) -> None:
    """Print ``part`` under its date and machine, and put the same into the page at ``path``.

    Raises:
        MarkerError: the page has no place for it.
    """
    dated = f"{datetime.now(timezone.utc):%Y-%m-%d}, {machine()}.\n\n{part}"
    print(dated)
    path.write_text(replaced(path.read_text(encoding="utf-8"), name, dated), encoding="utf-8")


def machine() -> str:
    """Return this machine in a clause: processor, cores, memory, GPU, how busy it is, and the libraries."""
    import torch  # noqa: PLC0415 - tests of what has nothing to do with torch import this module

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    gib = int(_field(_MEMORY_INFO, "MemTotal").split()[0]) / 2**20
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "bitsandbytes"))
    load = os.getloadavg()[1]
    return (
        f"{_field(_CPU_INFO, 'model name')} ({os.cpu_count()} cores, {_vector_width()}), {gib:.0f} GiB, {gpu}, "
        f"load average {load:.1f} over five minutes; {versions}"
    )


def _field(path: Path, name: str) -> str:
    """Return the first value of a ``name: value`` file of the kernel, ``unknown`` without it (Arm names no model)."""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _vector_width() -> str:
    import torch  # noqa: PLC0415 - as above

    return torch.backends.cpu.get_cpu_capability()
