"""What makes fail points fail: read from the environment, in processes that ``site/sitecustomize.py`` leads here.

``TORTURE_FAILPOINT=store.admit.rename.after=kill-supervisor@2`` strikes at the second time that a process passes the
point. Faults: ``kill-supervisor``, ``kill-builder`` and ``kill-server`` (SIGKILL; a point passed while there is no such
process is not counted), ``enospc`` and ``eio`` (the error that the system, or SQLite, raises), and ``power-cut`` (the
thread that got there goes no further, and whoever armed it cuts the power). Each strikes once.

``TORTURE_FAILPOINTS_IN=DIR`` lets a running agent be armed: the file ``plan`` there holds ``ID POINT=FAULT@N``, and
``struck.ID`` appears before the fault does, whichever process it is in; so it strikes once over all of them. Where
``trace`` exists, every point passed is appended to it, with the processes that lived then.

``TORTURE_BOOT_ID_IN=FILE`` says which run of the operating system this is, since no power cut here starts another one.
``TORTURE_WITHOUT=journal,files,folders`` leaves fsyncs out; see `unsynced`.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sqlite3
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from agent import failpoints
from agent.devices import system
from tests.e2e.harness.processes import command_line, descendants
from tests.torture import unsynced
from tests.torture.points import BUILDER, POINTS, POWER_CUT, SERVER, SUPERVISOR

ONE, DIRECTORY = "TORTURE_FAILPOINT", "TORTURE_FAILPOINTS_IN"
BOOT_ID, WITHOUT = "TORTURE_BOOT_ID_IN", "TORTURE_WITHOUT"
MODULES = {BUILDER: "agent.quantization", SERVER: "agent.serving"}
_SQLITE = {"enospc": "database or disk is full", "eio": "disk I/O error"}
_NUMBERS = {"enospc": errno.ENOSPC, "eio": errno.EIO}


@dataclass(frozen=True)
class Plan:
    """Strike with ``fault`` at the ``number``-th time that ``point`` is passed."""

    point: str
    fault: str
    number: int = 1
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read ``[ID ]POINT=FAULT[@N]``."""
        name, _, spec = text.strip().rpartition(" ")
        point, _, rest = spec.partition("=")
        fault, _, number = rest.partition("@")
        if point not in POINTS or fault.removeprefix("kill-") not in {*MODULES, SUPERVISOR, *_NUMBERS, POWER_CUT}:
            raise ValueError(f"{text!r} names no fail point or no fault")
        return cls(point, fault, int(number or 1), name)

    def __str__(self) -> str:
        return f"{self.name} {self.point}={self.fault}@{self.number}".strip()


class Arming:
    """What is armed in this process."""

    def __init__(self, plan: Plan | None, directory: Path | None) -> None:
        self._plan = plan
        self._directory = directory
        self._lock = threading.Lock()
        self._text = ""
        self._passed = 0

    def hit(self, name: str) -> None:
        """Trace the point, and strike if it is its turn."""
        with self._lock:
            plan = self._look(name)
            if plan is None or plan.point != name:
                return
            victim = victim_of(plan.fault)
            if plan.fault.startswith("kill-") and victim is None:
                return
            self._passed += 1
            if self._passed != plan.number or not self._claims(plan):
                return
        strike(name, plan.fault, victim)

    def _look(self, name: str) -> Plan | None:
        if self._directory is None:
            return self._plan
        trace = self._directory / "trace"
        if trace.exists():
            with trace.open("a", encoding="ascii") as file:
                file.write(f"{name} {','.join(role for role in MODULES if victim_of(f'kill-{role}'))}\n")
        try:
            text = (self._directory / "plan").read_text(encoding="ascii")
        except FileNotFoundError:
            text = ""
        if text != self._text:
            self._text, self._passed = text, 0
            self._plan = Plan.parse(text) if text else None
        return self._plan

    def _claims(self, plan: Plan) -> bool:
        if self._directory is None:
            self._plan = None
            return True
        try:
            descriptor = os.open(self._directory / f"struck.{plan.name}", os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        os.close(descriptor)
        return True


def victim_of(fault: str) -> int | None:
    """Return the process that a fault kills, None without one."""
    supervisor = os.getppid() if set(MODULES.values()) & set(command_line(os.getpid())) else os.getpid()
    role = fault.removeprefix("kill-")
    if role == SUPERVISOR:
        return supervisor
    return next(iter(descendants(supervisor, MODULES[role])), None) if role in MODULES else None


def strike(point: str, fault: str, victim: int | None) -> None:
    """Kill ``victim`` and wait for its end, wait for one's own, or raise what a full or broken disk raises."""
    if fault == POWER_CUT:
        threading.Event().wait()
    elif victim is not None:
        held = os.pidfd_open(victim)
        signal.pidfd_send_signal(held, signal.SIGKILL)
        poller = select.poll()
        poller.register(held, select.POLLIN)
        poller.poll()  # a process that kills itself, or its parent, ends here
        os.close(held)
    elif point.startswith("journal.") and not point.startswith("journal.file."):
        raise sqlite3.OperationalError(_SQLITE[fault])
    else:
        raise OSError(_NUMBERS[fault], os.strerror(_NUMBERS[fault]), f"fail point {point}")


def install() -> None:
    """Arm this process as its environment says; an environment that says nothing arms nothing."""
    one, directory = os.environ.get(ONE), os.environ.get(DIRECTORY)
    if one or directory:
        arming = Arming(Plan.parse(one) if one else None, Path(directory) if directory else None)
        failpoints.armed.update(dict.fromkeys(POINTS, arming.hit))
        if os.environ.get("TORTURE_PLAIN_TORCH"):
            sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    if boot := os.environ.get(BOOT_ID):
        system.boot_id = lambda root=system.ROOT: (root / boot).read_text(encoding="ascii")
    unsynced.leave_out(os.environ.get(WITHOUT, ""))
