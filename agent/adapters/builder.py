"""The builder: a child that comes and goes, one job each; see ``processes`` for the rules of children.

Torch is loaded in the child only, and the child's memory is free again when a call returns.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Any

from agent.adapters.processes import child_environment, end, ending
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.failpoints import around

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.deployment.ports import Watch

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
            child = self._start(errors)
            try:
                event = self._talk(child, {"threads": self._threads, **job}, watch)
            except BaseException:
                child.kill()  # nobody waits for its word any more
                raise
            finally:
                status = _reap(child)
            if event is None:
                raise _killed(status, _tail(errors))
        if event["event"] == "error":
            raise _builder_error(event)
        return event

    def _start(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        child = None
        try:
            with around("builder.start"):
                child = subprocess.Popen(
                    [sys.executable, "-m", "agent.quantization"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=child_environment(),
                )
        except OSError as error:
            end(child)
            raise StepError(ErrorCode.INTERNAL, f"the builder cannot be started: {error}", retryable=True) from None
        return child

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


def _lines(stream: IO[bytes], watch: Watch) -> Iterator[bytes]:
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
    """Wait for a child that has said its last word, or kill it when it does not end."""
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
        f"the builder {ending(status)} before it had a result{': ' + tail if tail else ''}",
        "most likely the kernel needed its memory: free some, or build on a larger device" if memory else None,
        retryable=True,
    )


def _tail(errors: IO[bytes]) -> str:
    length = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, length - STDERR_TAIL))
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
