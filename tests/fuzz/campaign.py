"""``python -m tests.fuzz.campaign TARGET SECONDS`` throws inputs at a target and prints a row for docs/reliability.md.

With atheris (``make fuzz`` brings it) inputs are led by the coverage of ``agent``; without it they are drawn by chance
from all that went before. Every finding is kept under ``--keep``, one file for each place that it came from:
``python -m tests.fuzz.campaign TARGET FILE`` plays it again and shows the traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

HOMES = {
    "commands": "tests.fuzz.targets:Commands",
    "manifest": "tests.fuzz.targets:Manifests",
    "journal": "tests.fuzz.journals:Journals",
    "checkpoint": "tests.fuzz.checkpoints:Checkpoints",
}
MOST_BYTES = 70_000
"""Of an input: a little more than the contract lets in."""
MOST_MEMORY_BYTES = 256 << 20
"""By which a process may grow after its first inputs."""
SLOWEST_S = 2.0
"""What one input may take of a processor's time; the slowest honest ones take a few hundredths of a second."""
WARM, POOL = 2000, 500


@dataclass
class Run:
    """One target under fire.

    Attributes:
        tried: inputs so far.
        slowest_s: what the slowest of them took.
        found: how often each place broke the claim, with the input that did first.
    """

    name: str
    target: Target
    keep: Path
    tried: int = 0
    longest_s: float = 0.0
    first_bytes: int = 0
    found: dict[str, int] = field(default_factory=dict)

    def feed(self, data: bytes) -> None:
        """Try an input and note what it broke."""
        began = time.process_time()
        try:
            self.target(data)
        except Exception as error:  # noqa: BLE001 - the claim is that there is none
            self._note(place_of(error), data)
        took = time.process_time() - began
        self.longest_s = max(self.longest_s, took)
        if took > SLOWEST_S:
            self._note(f"it took {took:.1f} s", data)
        self.tried += 1
        if self.tried == WARM:
            self.first_bytes = peak_bytes()

    def row(self, took_s: float, how: str) -> str:
        """Return a row of the page's table."""
        grown = max(0, peak_bytes() - self.first_bytes) if self.first_bytes else 0
        if grown > MOST_MEMORY_BYTES:
            self.found[f"it grew by {grown >> 20} MiB"] = 1
        told = f"{len(self.found)} findings: " + "; ".join(self.found) if self.found else "0 findings"
        slowest = f"slowest {self.longest_s * 1e3:.0f} ms, grew by {grown >> 20} MiB"
        return f"| {self.name} | {self.tried} inputs ({how}) | {slowest} | {told} | {took_s:.0f} s |"

    def _note(self, place: str, data: bytes) -> None:
        if place not in self.found:
            self.keep.mkdir(parents=True, exist_ok=True)
            (self.keep / f"{self.name}-{len(self.found)}").write_bytes(data)
            sys.stderr.write(f"{self.name}-{len(self.found)}: {place}\n{data[:200]!r}\n")
        self.found[place] = self.found.get(place, 0) + 1


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def place_of(error: BaseException) -> str:
    """Name a finding by its kind and the last line of the agent that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/agent/" in frame.filename] or frames
    return f"{type(error).__name__} at {'/'.join(Path(own[-1].filename).parts[-2:])}:{own[-1].lineno}"


def make(name: str, directory: Path) -> Target:
    """Return the target of that name, working in ``directory``."""
    module, _, kind = HOMES[name].partition(":")
    target: Target = getattr(importlib.import_module(module), kind)(directory)
    return target


def drawn(run: Run, seconds: float, seed: int) -> str:
    """Fire inputs drawn by chance; return the row."""
    draw = random.Random(seed)
    pool = run.target.seeds()
    began = time.monotonic()
    for data in list(pool):
        run.feed(data)
    while time.monotonic() - began < seconds:
        data = draw.choice(pool)
        for _ in range(draw.choice((1, 1, 2, 5))):
            data = run.target.mutate(data, draw, MOST_BYTES)
        run.feed(data)
        if draw.random() < 0.02:
            pool[draw.randrange(len(pool)) if len(pool) >= POOL else len(pool) :] = [data]
    return run.row(time.monotonic() - began, "by chance")


def led(run: Run, atheris: Any, seconds: float, seed: int, corpus: Path) -> None:
    """Fire inputs led by coverage and print the row; the fuzzer ends this process."""
    for number, data in enumerate(run.target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    began = time.monotonic()

    def one(data: bytes) -> None:
        run.feed(data)
        if time.monotonic() - began >= seconds:
            sys.stdout.write(run.row(time.monotonic() - began, "led by coverage") + "\n")
            sys.stdout.flush()
            shutil.rmtree(corpus.parent)
            os._exit(bool(run.found))  # nothing that is raised here ends libFuzzer quietly

    def mutate(data: bytes, most: int, number: int) -> bytes:
        draw = random.Random(number)
        if draw.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return run.target.mutate(data, draw, most)

    options = [f"-max_total_time={seconds + 60:.0f}", f"-max_len={MOST_BYTES}", f"-seed={seed}", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, "-rss_limit_mb=4096", str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Run as said above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=sorted(HOMES))
    parser.add_argument("what", help="seconds, or a file to be played again")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("findings"))
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        directory = Path(name)
        corpus = directory / "corpus"
        corpus.mkdir()
        with contextlib.ExitStack() as stack:
            atheris = _atheris() if arguments.what.isdecimal() else None
            if atheris is not None:
                stack.enter_context(atheris.instrument_imports(include=["agent"]))
            target = make(arguments.target, directory)
        if not arguments.what.isdecimal():
            target(Path(arguments.what).read_bytes())
            return
        run = Run(arguments.target, target, arguments.keep)
        if atheris is not None:
            led(run, atheris, float(arguments.what), arguments.seed, corpus)
        else:
            sys.stdout.write(drawn(run, float(arguments.what), arguments.seed) + "\n")
        raise SystemExit(bool(run.found))


def _atheris() -> Any:
    try:
        return importlib.import_module("atheris")
    except ImportError:
        return None


def _memory() -> str | None:
    """Return a directory in memory, so that no disk is worn out; None where there is none."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    main()
