"""A shell that reads a page's blocks one after the other, in a directory that stands for a clone and for a machine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.docs.blocks import ROOT
from tests.e2e.harness.mqtt import free_port
from tests.e2e.harness.processes import held_descendants

if TYPE_CHECKING:
    from collections.abc import Mapping

END_S = 20.0
PORTS = (1884, 8000, 8002, 8090)
"""What the pages listen on; free ones take their place, the same for every page of a run."""
SYSTEM = re.compile(r"(?<![\w.~/-])/(etc|opt|var)/")
"""Folders of a machine; below the sandbox's own they may be written."""
STAND_INS = {
    "sudo": 'while [ "${1#-}" != "$1" ]; do [ "$1" != -u ] || shift; shift; done\nexec "$@"\n',
    "scp": 'exec cp "$1" "${2#*:}"\n',
    "ssh": 'shift\nexec "$@"\n',
    "journalctl": 'exec cat "$DOCS_LOG"\n',
}
"""Programs that need more than a sandbox has: no root, no other machine, no journal but the agent's own log."""


@dataclass(frozen=True)
class Surroundings:
    """What is different here from the machine that the pages speak of.

    Attributes:
        root: takes the place of ``/`` for the machine's folders.
        environment: of every command.
        ports: by the number that the pages name.
        texts: names that lead nowhere here, and what is meant by them.
    """

    root: Path
    environment: Mapping[str, str]
    ports: Mapping[int, int]
    texts: Mapping[str, str] = field(default_factory=dict)

    def adapted(self, text: str) -> str:
        """Return a block's text as it is run here."""
        for written, meant in self.texts.items():
            text = text.replace(written, meant)
        for named, free in self.ports.items():
            text = re.sub(rf"\b{named}\b", str(free), text)
        return SYSTEM.sub(rf"{self.root}/\1/", text)


def ports() -> dict[int, int]:
    """Return a free port for each that the pages name."""
    return {port: free_port() for port in PORTS}


def clone(directory: Path, folder: Path = ROOT) -> Path:
    """Make ``directory`` look like a folder of this clone that may be written to: links to what lies in it."""
    for entry in folder.iterdir():
        if not entry.name.startswith("."):
            (directory / entry.name).symlink_to(entry)
    return directory


class BlockError(AssertionError):
    """A block did not end with status 0; the text has what it printed."""


class Shell:
    """A bash in a session of its own; a command that fails ends it, as ``set -e`` does.

    Args:
        directory: where it begins; ``HOME`` is below it.
        surroundings: what is different here.
    """

    def __init__(self, directory: Path, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._files = directory / ".blocks"
        programs, home = directory / ".programs", directory / ".home"
        for folder in (self._files, programs, home):
            folder.mkdir()
        for name, text in STAND_INS.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}")
            (programs / name).chmod(0o755)
        own = str(Path(sys.executable).parent)
        path = os.pathsep.join((str(programs), own, os.environ["PATH"], "/usr/sbin"))
        environment = {**os.environ, "PATH": path, "HOME": str(home), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        environment |= surroundings.environment
        told, self._tell = os.pipe()
        self._told = os.fdopen(told, encoding="utf-8")
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            cwd=directory,
            env=environment,
            pass_fds=(self._tell,),
            start_new_session=True,
            text=True,
        )
        os.close(self._tell)
        self._say("set -e -o pipefail")

    def run(self, name: str, text: str, *, within_s: float) -> str:
        """Run a block and return what it printed.

        Raises:
            BlockError: it failed, or took longer than ``within_s``.
        """
        script, printed = self._files / f"{name}.sh", self._files / f"{name}.out"
        script.write_text(self._surroundings.adapted(text), encoding="utf-8")
        timer = threading.Timer(within_s, self._kill)
        timer.start()
        # What runs on in the background must not hold the pipe whose end tells that bash is gone.
        self._say(f". {script} < /dev/null > {printed} 2>&1 {self._tell}>&-\necho done >&{self._tell}")
        is_done = self._told.readline() == "done\n"
        timer.cancel()
        output = printed.read_text(encoding="utf-8", errors="replace") if printed.exists() else ""
        if not is_done:
            raise BlockError(f"{name} failed, or took longer than {within_s:g} s; it printed\n{output}")
        return output

    def close(self) -> None:
        """End the shell and whatever it left running."""
        left = held_descendants(self._bash.pid)
        assert self._bash.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._bash.stdin.close()
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                process.send(signal.SIGTERM)
        for process in left:
            if not process.has_ended(END_S):
                process.send(signal.SIGKILL)
            process.close()
        self._bash.wait(END_S)
        self._told.close()

    def _say(self, line: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{line}\n")
        self._bash.stdin.flush()

    def _kill(self) -> None:
        os.killpg(self._bash.pid, signal.SIGKILL)
