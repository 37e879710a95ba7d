"""What a device costs that has nothing to do: memory and processor of supervisor and server, over ten minutes.

    make bench-idle

The demo's model serves, the broker is connected, and nobody asks for anything; then the same with the page open in a
browser, which holds one stream of events. Processor time and switches are the kernel's own counts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.bench import page
from deploy.bench.box import box
from tests.e2e.harness.processes import descendants, resident_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.bench.box import Box

MIB = 1 << 20
MOST_BYTES = 64 * MIB
SETTLED_S, LOOK_S = 300.0, 1.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Idle:
    """What a process took over a while.

    Attributes:
        rss_bytes: the most that was resident at any look.
        grown_bytes: how much more it was at the end than at the beginning.
        cpu_percent: of one core.
        wakeups: times a second that it went to sleep by itself, all threads together.
    """

    rss_bytes: int
    grown_bytes: int
    cpu_percent: float
    wakeups: float


def watched(pids: dict[str, int], seconds: float) -> dict[str, Idle]:
    """Look at processes once a second and return what each took."""
    before = {name: _counts(pid) for name, pid in pids.items()}
    sizes: dict[str, list[int]] = {name: [resident_bytes(pid)] for name, pid in pids.items()}
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        time.sleep(min(LOOK_S, left))
        for name, pid in pids.items():
            sizes[name].append(resident_bytes(pid))
    took = time.monotonic() - began
    found = {}
    for name, pid in pids.items():
        cpu_s, wakeups = (after - start for after, start in zip(_counts(pid), before[name], strict=True))
        grown = sizes[name][-1] - sizes[name][0]
        found[name] = Idle(max(sizes[name]), grown, 100 * cpu_s / took, wakeups / took)
    return found


def _counts(pid: int) -> tuple[float, int]:
    """Return the processor time in seconds, and how often the threads gave up the processor of their own will."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    wakeups = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            status = (thread / "status").read_text(encoding="utf-8")
            wakeups += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return (int(fields[11]) + int(fields[12])) * TICK_S, wakeups


@contextlib.contextmanager
def page_open(device: Box) -> Iterator[None]:
    """Hold the stream of events as a browser does that shows the page."""
    host, port = device.page.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5.0) as stream:
        stream.sendall(f"GET /events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = stream.recv(1 << 16)
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise RuntimeError(f"the page's stream of events answered {head[:100]!r}")
        stream.settimeout(None)
        reader = threading.Thread(target=_read, args=(stream,), daemon=True)
        reader.start()
        try:
            yield
        finally:
            stream.shutdown(socket.SHUT_RDWR)
            reader.join()


def _read(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while stream.recv(1 << 16):
            """What a browser would draw."""


def settled(device: Box, pid: int) -> None:
    """Wait until nothing of the start is going on any more: the self-test's process has come and gone.

    Raises:
        TimeoutError: it has not.
    """
    deadline = time.monotonic() + SETTLED_S
    was_begun = False
    while not was_begun or descendants(pid, "agent.quantization"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the self-test has not ended within {SETTLED_S:g} s")
        time.sleep(LOOK_S)
        was_begun = any(entry["event"] == "self_test_started" for _, entry in device.logged())


def told(found: dict[str, dict[str, Idle]]) -> tuple[str, bool]:
    """Return the table with its verdict, and whether that holds."""
    most = max(processes["supervisor"].rss_bytes for processes in found.values())
    rows = [
        [
            f"{name}, {when}",
            f"{idle.rss_bytes / MIB:.1f}",
            f"{idle.grown_bytes / MIB:+.2f}",
            f"{idle.cpu_percent:.2f}",
            f"{idle.wakeups:.1f}",
        ]
        for when, processes in found.items()
        for name, idle in processes.items()
    ]
    holds = most <= MOST_BYTES
    verdict = f"* {'met' if holds else 'MISSED'}: the supervisor takes at most {most / MIB:.1f} MiB, of 64"
    head = ["process", "RSS MiB", "grown MiB", "CPU %", "wake-ups a second"]
    return f"{verdict}\n\n{page.markdown(head, rows)}", holds


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True)
@click.option("--output", "path", type=click.Path(path_type=Path, dir_okay=False), default=page.PAGE)
def main(minutes: float, path: Path) -> None:
    """Leave a device alone and write what it took into the page at OUTPUT; status 1 where the verdict does not hold."""
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(
            box(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nibbled-bench-"))))
        )
        child = stack.enter_context(device.running())
        device.await_answer()
        settled(device, child.pid)
        (server,) = descendants(child.pid, "agent.serving")
        pids = {"supervisor": child.pid, "server": server}
        found = {"nobody looks": watched(pids, 60 * minutes)}
        with page_open(device):
            found["the page is open"] = watched(pids, 60 * minutes)
    text, holds = told(found)
    page.publish("bench-idle", text, path)
    raise SystemExit(not holds)


if __name__ == "__main__":
    main()
