"""The builder: a child that comes and goes, one job each; see ``processes`` for the rules of children.

Torch is loaded in the child only, and the child's memory is free again when a call returns.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Any

from agent.adapters.deaths import Coroner, reap
from agent.adapters.processes import child_environment, end
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.failpoints import around

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.deployment.ports import Watch

POLL_S = 0.2
REAP_S = 30.0
STDERR_TAIL = 2000


class BuilderProcess:
    """Runs ``python -m agent.quantization``, one job a process."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def build(self, job: dict[str, Any], watch: Watch) -> dict[str, Any]:
        """Run a job and return its result event.

        The child's end is waited for before this returns, so its memory is free again.

        Raises:
            StepError: with the builder's code; when it died without a word ``insufficient_memory`` if the kernel says
                that it was killed for memory, else ``build_killed``.
            InterruptedStepError: after the child was killed.
        """
        with tempfile.TemporaryFile() as errors:
            coroner = Coroner()
            child = self._start(errors)
            try:
                event = self._talk(child, {"threads": self._threads, **job}, watch)
            except BaseException:
                child.kill()  # nobody waits for its word any more
                raise
            finally:
                status, peak_bytes = _reap(child)
            if event is None:
                raise _died(coroner, status, peak_bytes, _tail(errors))
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
                    start_new_session=True,
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


def _reap(child: subprocess.Popen[bytes]) -> tuple[int, int | None]:
    """Wait for a child that has said its last word, or kill it when it does not end; see ``reap``."""
    ended = reap(child, REAP_S)
    if child.stdout is not None:
        child.stdout.close()
    return ended


def _builder_error(event: dict[str, Any]) -> StepError:
    try:
        code = ErrorCode(event["code"])
    except ValueError:
        code = ErrorCode.INTERNAL
    return StepError(code, event["detail"], event.get("hint"), retryable=bool(event.get("retryable")))


def _died(coroner: Coroner, status: int, peak_bytes: int | None, tail: str) -> StepError:
    was_memory = coroner.was_memory(status)
    hint = {
        True: "free memory, undeploy another model, or build on a larger device",
        None: "most likely memory ran out",
    }
    return StepError(
        ErrorCode.INSUFFICIENT_MEMORY if was_memory else ErrorCode.BUILD_KILLED,
        f"the builder had no result: it {coroner.words(status, peak_bytes)}{': ' + tail if tail else ''}",
        hint.get(was_memory),
        retryable=True,
    )


def _tail(errors: IO[bytes]) -> str:
    length = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, length - STDERR_TAIL))
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
