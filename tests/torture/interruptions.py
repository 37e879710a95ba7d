"""Downloads whose line is cut, reset or stalls at random places of the file, or whose process is killed there.

    python -m tests.torture.interruptions --count 1000 --seed 1

A download is a process of its own with the product's downloader; when it was killed, the next one takes over, as after
a restart of the agent. In the end the file is compared, and what was sent is counted at the server. Exit status 1 if a
file is wrong, or if more was sent than the file and a chunk for each interruption.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import click

from agent.adapters.download.downloader import Downloader
from agent.adapters.download.pace import CHUNK
from agent.adapters.download.policy import Policy
from agent.deployment.runner import WorkWatch
from agent.devices import system
from tests.torture.bad_line import KINDS, Break, bad_line

MIB = 2**20
STALL_S = 0.3
_LONGEST_WAIT_S = 0.02
_MOST_PROCESSES = 1000


@dataclass
class Found:
    """What came out.

    Attributes:
        downloads: how many.
        size: bytes of each.
        sent: bytes that all of them cost.
        lost: by kind, bytes asked for again after each interruption.
        wrong: what did not hold.
    """

    size: int
    downloads: int = 0
    sent: int = 0
    lost: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)

    @property
    def interruptions(self) -> int:
        """How many came."""
        return sum(len(each) for each in self.lost.values())

    def rows(self) -> str:
        """Return the rows of the table in docs/reliability.md."""
        extra = self.sent - self.downloads * self.size
        lines = [_row(kind, lost, sum(lost)) for kind, lost in sorted(self.lost.items())]
        everything = [lost for each in self.lost.values() for lost in each]
        lines.append(_row(f"all, in {self.downloads} downloads of {self.size // MIB} MiB", everything, extra))
        return "\n".join(lines)


def _row(name: str, lost: list[int], extra: int) -> str:
    above = sum(each > CHUNK for each in lost)
    mean = extra / max(1, len(lost)) / 1024
    return f"| {name} | {len(lost)} | {mean:.1f} KiB | {max(lost, default=0) / 1024:.0f} KiB | {above} |"


def campaign(count: int, seed: int, *, size: int, each: int, rate: int) -> Found:
    """Download until ``count`` interruptions came, ``each`` in a download.

    Args:
        count: interruptions.
        seed: of places and kinds.
        size: bytes of the file.
        each: interruptions of one download.
        rate: bytes/s of the line.
    """
    rng, found = random.Random(seed), Found(size)
    while found.interruptions < count:
        _download(rng, found, min(each, count - found.interruptions), rate)
    return found


def _download(rng: random.Random, found: Found, breaks: int, rate: int) -> None:
    content = rng.randbytes(found.size)
    with tempfile.TemporaryDirectory() as folder, bad_line(content, rate) as line:
        offsets = sorted(rng.sample(range(1, found.size), breaks))
        line.breaks = [Break(offset, rng.choice(KINDS)) for offset in offsets]
        path = Path(folder) / "file.part"
        for _ in range(_MOST_PROCESSES):
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.interruptions", "fetch", line.url, str(path), str(found.size)]
            )
            line.kill = child.kill
            if child.wait() == 0:
                break
        found.downloads += 1
        found.sent += line.sent
        for kind, lost in line.lost:
            found.lost[kind].append(lost)
        if path.read_bytes() != content:
            found.wrong.append(f"download {found.downloads}: another file arrived")
        if line.sent > found.size + breaks * CHUNK:
            found.wrong.append(
                f"download {found.downloads}: {line.sent} bytes for {found.size}, {breaks} interruptions"
            )
        if len(line.lost) != breaks or line.breaks:
            found.wrong.append(f"download {found.downloads}: {len(line.lost)} of {breaks} interruptions came")


class _HastyWatch(WorkWatch):
    """Waits, but not as long as a device would: only the bytes are judged here."""

    def wait(self, seconds: float) -> None:
        super().wait(min(seconds, _LONGEST_WAIT_S))


@click.group(invoke_without_command=True)
@click.option("--count", default=1000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--mib", default=32, show_default=True, help="Of the file.")
@click.option("--each", default=25, show_default=True, help="Interruptions of a download.")
@click.option("--rate", default=32, show_default=True, help="MiB/s of the line.")
def main(count: int, seed: int, mib: int, each: int, rate: int) -> None:
    """Run a campaign and print the rows of its table."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    began = time.monotonic()
    found = campaign(count, seed, size=mib * MIB, each=each, rate=rate * MIB)
    click.echo(found.rows())
    click.echo(f"seed {seed}, {time.monotonic() - began:.0f} s; wrong: {'; '.join(found.wrong) or 'nothing'}")
    sys.exit(1 if found.wrong else 0)


@main.command()
@click.argument("url")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("size", type=int)
def fetch(url: str, path: Path, size: int) -> None:
    """Be the process that downloads."""
    policy = Policy(schemes=frozenset({"http"}), hosts=frozenset({"127.0.0.1"}), stall_s=STALL_S)
    watch = _HastyWatch(lambda _done, _total, _unit: None)
    Downloader(policy, boot=system.boot_id()).fetch(url, path, size, watch)


if __name__ == "__main__":
    main()
