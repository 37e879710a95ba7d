"""The two kinds of children: the builder, which comes and goes, and the server, which stays.

Rules: a child is started from an argument list, never through a shell; it is tied to the thread that starts it
(PR_SET_PDEATHSIG, which the children set themselves), so it must be started from one that lives as long as the agent;
how a child ends is always turned into a sentence. Torch is loaded in the children only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, TYPE_CHECKING, Any

import structlog

from agent.adapters.control import ControlError, call
from agent.contract.errors import ErrorCode
from agent.deployment.ports import InterruptedStepError, StepError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent.deployment.models import Release, Served
    from agent.deployment.ports import Watch

log = structlog.get_logger("processes")
POLL_S = 0.2
STDERR_TAIL = 2000


class BuilderProcess:
    """Runs ``python -m agent.quantization``, one job a process."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def build(self, job: dict[str, Any], watch: Watch) -> dict[str, Any]:
        """Run a job and return its result event.

        The child's end is waited for before this returns, so its memory is free again.

        Raises:
            StepError: with the builder's code, or ``build_killed`` when it died without a word.
            InterruptedStepError: after the child was killed.
        """
        with tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "agent.quantization"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            try:
                event = self._talk(child, {"threads": self._threads, **job}, watch)
            finally:
                status = _reap(child)
            if event is None:
                raise _killed(status, _tail(errors))
        if event["event"] == "error":
            raise _builder_error(event)
        return event

    def _talk(self, child: subprocess.Popen[bytes], job: dict[str, Any], watch: Watch) -> dict[str, Any] | None:
        stdin, stdout = child.stdin, child.stdout
        if stdin is None or stdout is None:  # pragma: no cover - both are pipes
            return None
        try:
            stdin.write(json.dumps(job).encode())
            stdin.close()
        except BrokenPipeError:
            return None
        last = None
        for line in _lines(stdout, watch):
            event = json.loads(line)
            if event["event"] == "progress":
                watch.progress(event["done"], event["total"], event["unit"])
            else:
                last = event
        return last


class ServerProcess:
    """Keeps ``python -m agent.serving`` and speaks to it over its control socket.

    Args:
        http: listening TCP socket; it stays open here, so that clients wait while the server is replaced.
        control: listening Unix socket.
        control_path: where ``control`` is bound.
        options: further arguments of the server.
        on_exit: called from a watching thread when the server ends without being asked to.
        start_timeout_s: how long it may take to answer.
    """

    def __init__(
        self,
        http: socket.socket,
        control: socket.socket,
        control_path: Path,
        *,
        options: tuple[str, ...] = (),
        on_exit: Callable[[str], None] = lambda _detail: None,
        start_timeout_s: float = 120.0,
    ) -> None:
        self._http = http
        self._control = control
        self._path = control_path
        self._options = options
        self._on_exit = on_exit
        self._start_timeout_s = start_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopping = False
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Process id of the running server, or None."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def restore(self, served: Mapping[str, Served]) -> None:
        """Make the server hold and answer with exactly what ``served`` says.

        One model that cannot be loaded does not keep the others from being served.

        Raises:
            StepError: of the last model that could not be restored, after all were tried.
        """
        self._ensure_running()
        try:
            self._restore_models(served)
        finally:
            self._open()

    def _restore_models(self, served: Mapping[str, Served]) -> None:
        held = self._held()
        failure: StepError | None = None
        for name in {*served, *held}:
            try:
                self._restore_model(name, served[name].current if name in served else None, held.get(name, {}))
            except StepError as error:  # noqa: PERF203 - one try per model is the point
                log.error("model_not_restored", model=name, detail=error.detail)  # noqa: TRY400 - a sentence is enough
                failure = error
        if failure is not None:
            raise failure

    def _restore_model(self, name: str, wanted: Release | None, held: Mapping[str, bool]) -> None:
        if wanted is not None:
            if wanted.id not in held:
                self.load(name, wanted)
            if not held.get(wanted.id, False):
                self._repository(name, "activate", {"release": wanted.id})
        for release in held:
            if wanted is None or release != wanted.id:
                self._repository(name, "unload", {"release": release})

    def load(self, model: str, release: Release) -> dict[str, Any]:
        """Load a release beside what is active."""
        self._ensure_running()
        parameters = {
            "artifact": release.artifact,
            "version": release.version,
            "release": release.id,
            "activate": False,
        }
        answer: dict[str, Any] = self._repository(model, "load", parameters)
        return answer

    def canary(self, model: str, release: Release) -> dict[str, Any]:
        """Run the gate's inputs through a loaded release."""
        answer: dict[str, Any] = self._repository(model, "canary", {"release": release.id, "gate": release.gate_file})
        return answer

    def activate(self, model: str, release: Release) -> None:
        """Let a loaded release answer from now on."""
        self._repository(model, "activate", {"release": release.id})
        self._open()

    def undeploy(self, model: str) -> None:
        """Stop answering for ``model`` and free its memory."""
        self._ensure_running()
        self._repository(model, "unload", {})

    def status(self) -> dict[str, Any]:
        """Return counters and memory."""
        try:
            answer: dict[str, Any] = call(self._path, "GET", "/v2/control/status", timeout_s=10.0)
        except ControlError as error:
            raise StepError(ErrorCode.TRIAL_FAILED, f"the server does not answer: {error}", retryable=True) from None
        return {**answer, "pid": self.pid}

    def stop(self, drain_s: float = 10.0) -> None:
        """Let the server finish its requests, then end it."""
        self._is_stopping = True
        child = self._child
        if child is None or child.poll() is not None:
            return
        child.terminate()
        try:
            child.wait(drain_s + 5.0)
        except subprocess.TimeoutExpired:
            log.error("server_killed", pid=child.pid, waited_s=drain_s + 5.0)  # noqa: TRY400 - no traceback to show
            child.kill()
            child.wait()

    def _ensure_running(self) -> None:
        if self.pid is not None or self._is_stopping:
            return
        fds = (self._http.fileno(), self._control.fileno())
        command = [
            sys.executable,
            "-m",
            "agent.serving",
            "--http-fd",
            str(fds[0]),
            "--control-fd",
            str(fds[1]),
            "--closed",
        ]
        child = subprocess.Popen([*command, *self._options], pass_fds=fds, stdin=subprocess.DEVNULL)
        self._child = child
        self.starts += 1
        log.info("server_started", pid=child.pid, start=self.starts)
        self._await(child)
        threading.Thread(target=self._wait, args=(child,), name=f"server-{child.pid}", daemon=True).start()

    def _await(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            try:
                call(self._path, "GET", "/v2/health/live", timeout_s=max(0.1, deadline - time.monotonic()))
            except ControlError as error:  # noqa: PERF203 - a poll, not a hot loop
                if child.poll() is not None:
                    self._on_exit(_ending(child.returncode))
                    raise StepError(
                        ErrorCode.LOAD_FAILED, f"the server {_ending(child.returncode)} while starting", retryable=True
                    ) from None
                if time.monotonic() >= deadline:
                    child.kill()
                    child.wait()
                    raise StepError(
                        ErrorCode.LOAD_FAILED,
                        f"the server gave no answer in {self._start_timeout_s:.0f} s: {error}",
                        retryable=True,
                    ) from None
                time.sleep(POLL_S)
            else:
                return

    def _wait(self, child: subprocess.Popen[bytes]) -> None:
        status = child.wait()
        if not self._is_stopping and child is self._child:
            self._on_exit(_ending(status))

    def _open(self) -> None:
        """Let the server answer on its TCP socket, where connections have waited until its models were back."""
        with contextlib.suppress(ControlError):
            call(self._path, "POST", "/v2/control/open", {})

    def _held(self) -> dict[str, dict[str, bool]]:
        """Return, for every model, the releases in the server and whether each is the active one."""
        try:
            rows = call(self._path, "POST", "/v2/repository/index", {})
        except ControlError as error:
            raise StepError(ErrorCode.LOAD_FAILED, f"the server does not answer: {error}", retryable=True) from None
        held: dict[str, dict[str, bool]] = {}
        for row in rows:
            parameters = row["parameters"]
            held.setdefault(row["name"], {})[parameters["release"]] = parameters["active"]
        return held

    def _repository(self, model: str, verb: str, parameters: dict[str, Any]) -> Any:
        route = f"/v2/repository/models/{model}/{verb}"
        try:
            return call(self._path, "POST", route, {"parameters": parameters}, timeout_s=300.0)
        except ControlError as error:
            code = _CODES.get(error.code or "", _VERB_CODES[verb])
            raise StepError(code, f"{verb} of {model}: {error}", retryable=error.status is None) from None


def use_one_arena() -> None:
    """Let all threads of this process allocate from one arena.

    glibc gives every thread its own otherwise (``mallopt(3)``, ``M_ARENA_MAX``), and each keeps what it ever needed:
    a fair price for speed, which the supervisor has no use for. Does nothing on other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


_M_ARENA_MAX = -8
"""From glibc's ``malloc.h``."""

_CODES = {"insufficient_memory": ErrorCode.INSUFFICIENT_MEMORY, "bad_artifact": ErrorCode.LOAD_FAILED}
_VERB_CODES = {
    "load": ErrorCode.LOAD_FAILED,
    "unload": ErrorCode.LOAD_FAILED,
    "canary": ErrorCode.CANARY_FAILED,
    "activate": ErrorCode.ACTIVATION_FAILED,
}


def _lines(stream: IO[bytes], watch: Watch) -> Any:
    """Yield lines as they come, looking five times a second whether the work should stop."""
    buffer = b""
    while True:
        watch.check()
        if not select.select([stream], [], [], POLL_S)[0]:
            continue
        chunk = os.read(stream.fileno(), 65536)
        if not chunk:
            return
        *lines, buffer = (buffer + chunk).split(b"\n")
        yield from lines


def _reap(child: subprocess.Popen[bytes]) -> int:
    """Wait for a child that has said its last word, or kill it."""
    interrupted = isinstance(sys.exc_info()[1], InterruptedStepError)
    if interrupted:
        child.kill()
    try:
        status = child.wait(30.0)
    except subprocess.TimeoutExpired:
        child.kill()
        status = child.wait()
    if child.stdout is not None:
        child.stdout.close()
    return status


def _builder_error(event: dict[str, Any]) -> StepError:
    try:
        code = ErrorCode(event["code"])
    except ValueError:
        code = ErrorCode.INTERNAL
    return StepError(code, event["detail"], event.get("hint"), retryable=bool(event.get("retryable")))


def _killed(status: int, tail: str) -> StepError:
    memory = status == -signal.SIGKILL
    return StepError(
        ErrorCode.BUILD_KILLED,
        f"the builder {_ending(status)} before it had a result{': ' + tail if tail else ''}",
        "most likely the kernel needed its memory: free some, or build on a larger device" if memory else None,
        retryable=True,
    )


def _ending(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _tail(errors: IO[bytes]) -> str:
    length = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, length - STDERR_TAIL))
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
