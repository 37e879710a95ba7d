"""From nothing to the first answer: what the README and the first steps say, followed in a Debian that has nothing.

    make first-inference

A root file system without Python, made by mmdebstrap, becomes the root of a namespace of its own. There the command
blocks are run as they are written, one after the other: a command is what a person types, a line with its continuations
and here-documents. Prints the table of docs/install.md: commands, minutes until the first answer, where the time went.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.docs.blocks import ROOT, blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = "root"
CLONE = "git clone --quiet /srv/nibbled.git nibbled && cd nibbled"
"""What follows the packages of the system; the address is a copy of this clone, committed changes alone."""
TAKEN_ALONG = ("PIP_", "SSL_CERT_")
"""How this machine reaches its package index, in the environment; files of it are named by --share."""
_HERE_DOCUMENT = re.compile(r"<<-?\s*'?(\w+)'?")


@dataclass(frozen=True)
class Way:
    """A way to the first answer.

    Attributes:
        name: whose it is, for the table.
        texts: what is typed, block after block.
        answered: printed once the answer is there; None if that is the end of the last block.
    """

    name: str
    texts: tuple[str, ...]
    answered: str | None = None


def typed(text: str) -> int:
    """Return how many commands a person types for a block of bash: lines, with what belongs to them."""
    count, end, continues = 0, None, False
    for line in text.splitlines():
        if end is not None:
            end = None if line == end else end
            continue
        if line.strip() and not line.lstrip().startswith("#") and not continues:
            count += 1
        document = _HERE_DOCUMENT.search(line)
        end = document[1] if document else None
        continues = line.endswith("\\")
    return count


def ways() -> tuple[Way, Way]:
    """Return the README's way, and that of the first steps, until each has its first answer."""
    demo = next(block.text for block in blocks(ROOT / "README.md") if "make demo" in block.text)
    demo = "\n".join(line for line in demo.splitlines() if line.startswith("make demo"))
    prepare = "apt-get update && apt-get install --yes git make python3-venv"
    steps = [block.text for block in blocks(ROOT / "docs" / "getting-started.md") if block.language == "sh"]
    last = next(number for number, text in enumerate(steps) if "/infer" in text)
    return (
        Way("[README](../README.md#two-commands), `make demo`", (prepare, demo), "classify held-out"),
        Way("[first steps](getting-started.md), by hand to step 7", tuple(steps[: last + 1])),
    )


@contextmanager
def machine(base: Path, directory: Path, shares: list[str]) -> Iterator[Path]:
    """Yield a root file system of its own, with a clone of this tree in root's home."""
    root = directory / "rootfs"
    _system("cp", "-a", "--reflink=auto", str(base), str(root))
    try:
        _system("git", "clone", "--quiet", "--bare", str(ROOT), str(root / "srv" / "nibbled.git"))
        shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
        for share in shares:
            target = root / share.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(share).is_dir():
                target.mkdir(exist_ok=True)
            else:
                target.touch()
        yield root
    finally:
        shutil.rmtree(root)


def follow(way: Way, root: Path, shares: list[str]) -> tuple[int, float, list[float]]:
    """Follow a way; return its commands, the seconds to the first answer, and the seconds of each block.

    Raises:
        RuntimeError: a block failed.
    """
    packages, *others = way.texts
    script = "set -e -o pipefail\ncd ~\n"
    for text in (packages, CLONE, *others):
        script += f"{text}\necho '== block done'\n"
    (root / HOME / "follow.sh").write_text(script, encoding="utf-8")
    mounts = [f"mount --rbind {path} {root}{path}" for path in ("/dev", *shares)]
    mounts.append(f"mount -t proc proc {root}/proc")
    inside = f"exec chroot {root} /bin/bash /{HOME}/follow.sh"
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-ec", "\n".join([*mounts, inside])]
    environment = {name: value for name, value in os.environ.items() if name.startswith(TAKEN_ALONG)}
    environment |= {"HOME": f"/{HOME}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    begin = time.monotonic()
    ends: list[float] = []
    answer: float | None = None
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as child:
        assert child.stdout is not None  # noqa: S101 - the pipe was asked for
        was_announced = False
        for line in child.stdout:
            sys.stderr.write(line)
            if line == "== block done\n":
                ends.append(time.monotonic() - begin)
            elif was_announced and answer is None:
                answer = time.monotonic() - begin
            was_announced = was_announced or (way.answered is not None and way.answered in line)
    if child.returncode:
        raise RuntimeError(f"{way.name}: block {len(ends)} ended with status {child.returncode}")
    total = ends[-1] if answer is None else answer
    return 1 + sum(map(typed, way.texts)), total, [end - start for start, end in zip([0.0, *ends], ends, strict=False)]


def _system(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> int:
    """Follow both ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="root file system to begin with")
    parser.add_argument("--share", action="append", default=[], help="a path of this machine that pip needs there")
    arguments = parser.parse_args()
    rows = []
    for way in ways():
        with machine(arguments.base, arguments.base.parent, arguments.share) as root:
            commands, seconds, parts = follow(way, root, arguments.share)
            size = _system("du", "-sm", str(root / HOME)).split()[0]
            rows.append(f"| {way.name} | {commands} | {seconds / 60:.1f} | {max(parts) / 60:.1f} | {size} |")
    print("| way | commands | minutes to the first answer | of them the slowest block | MiB in the home |")
    print("|---|---:|---:|---:|---:|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
