"""Agents that start by fork from a process that has loaded everything: no import, and so many more cases in an hour.

An agent, a builder or a server so started is a process like any other, with its own number, pipes, parent and end; only
``exec`` and the seconds in which Python imports torch are missing. ``Forked`` does it for ``python -m agent…``, as
started by a test and, from then on, by the agent itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import structlog._output

from agent import failpoints
from tests.torture import arming

MODULES = {"agent", *arming.MODULES.values()}
quiet = threading.RLock()
"""Held by whoever is inside a library with locks of its own (SQLite, torch): who is forked then could not take them."""
_LOADED = (
    "torch._dynamo",  # which torch imports at the first use of an operator
    "agent.cli",
    "agent.supervisor",
    "agent.quantization.failures",
    "agent.quantization.jobs",
    "agent.serving.control",
    "agent.serving.http",
    "agent.serving.loader",
    "agent.serving.process",
)


def preload() -> None:
    """Import what agents, builders and servers import, without bitsandbytes, and remember it for every fork."""
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    for name in _LOADED:
        importlib.import_module(name)
    os.register_at_fork(before=_hold_locks, after_in_parent=_release_locks, after_in_child=_release_locks)
    gc.freeze()


class Forked(subprocess.Popen[Any]):
    """``Popen`` that forks for ``python -m`` with a module of the agent, and is itself for any other command."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        _executable, _preexec, _close, pass_fds, cwd, env, _info, _flags, _shell, *pipes = rest[:15]
        if list(args[:2]) != [sys.executable, "-m"] or args[2] not in MODULES:
            super()._execute_child(args, *rest)  # type: ignore[misc] # private, and the only place to hook in
            return
        self.pid = os.fork()
        if self.pid == 0:
            streams = {0: pipes[0], 1: pipes[3], 2: pipes[5]}
            _become(list(args), streams, set(pass_fds), cwd, env)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined] # as above


def _become(args: list[str], streams: dict[int, int], kept: set[int], cwd: Any, env: Any) -> None:
    """Be what ``exec`` would have made of this process, and end with it."""
    status = 1
    try:
        gc.freeze()  # nothing of the other life is ever closed by its collector
        _take_over_descriptors(streams, kept)
        _forget_signals()
        _rename([Path(args[0]).name, *args[1:]])
        os.chdir(cwd or ".")
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        failpoints.armed.clear()
        arming.install()
        subprocess.Popen = Forked  # type: ignore[misc]
        sys.argv = args[2:]
        runpy.run_module(args[2], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _take_over_descriptors(streams: dict[int, int], kept: set[int]) -> None:
    for number, given in streams.items():
        if given != -1:
            os.dup2(given, number)
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor > max(streams) and descriptor not in kept:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        for number, mode in enumerate("rww")
    )


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _rename(args: list[str]) -> None:
    """Write ``args`` where /proc shows a command line from; cut off, but for its last NUL, where there is no room."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)
    room = end - begin - 1
    ctypes.memmove(begin, b"\0".join(arg.encode() for arg in args)[:room].ljust(room, b"\0"), room)


_held: list[Any] = []


def _hold_locks() -> None:
    """Let nobody be in a library or writing a line of the log: the child would wait for ever for who is not there."""
    _held[:] = [quiet, *structlog._output.WRITE_LOCKS.values()]
    for lock in _held:
        lock.acquire()


def _release_locks() -> None:
    for lock in _held:
        lock.release()
