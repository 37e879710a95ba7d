"""Asks CUDA in a child process, with a deadline; every failure is "no figure" with a reason. See ``cuda``."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.devices.bounded import HUNG, OK

if TYPE_CHECKING:
    from collections.abc import Mapping

DEADLINE_S = 10.0
"""A first ``cuInit`` after boot loads firmware; python starts in under a second even on a Nano."""
_LAST_WORDS_S = 1.0


@dataclass(frozen=True)
class Cuda:
    """What the driver said; None is "not known"."""

    name: str | None = None
    capability: tuple[int, int] | None = None
    is_integrated: bool | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    memory_clock_khz: int | None = None
    memory_bus_bits: int | None = None

    @property
    def used_bytes(self) -> int | None:
        """What is not free; None where free or total is not known."""
        if self.total_bytes is None or self.free_bytes is None:
            return None
        return self.total_bytes - self.free_bytes


@dataclass(frozen=True)
class Answer:
    """The driver's words, and ``ok`` or the reason why they or the free memory are missing.

    Attributes:
        is_absent: there is no driver or no device, which will not change while this process lives.
    """

    cuda: Cuda | None
    word: str
    is_absent: bool = False


class CudaChild:
    """Runs ``python -m agent.devices.cuda``, one process a question.

    Args:
        command: the process to run.
        deadline_s: seconds after which it is killed.
    """

    def __init__(
        self,
        command: tuple[str, ...] = (sys.executable, "-m", "agent.devices.cuda"),
        *,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._command = command
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._stuck: subprocess.Popen[bytes] | None = None

    def ask(self) -> Answer:
        """Return the driver's words. Never raises.

        A child that does not even end when it is killed (it sits in the driver) is left alone, and no other is
        started beside it until it is gone.
        """
        with self._lock:
            if self._stuck is not None:
                if self._stuck.poll() is None:
                    return Answer(None, HUNG)
                if self._stuck.stdout is not None:
                    self._stuck.stdout.close()
                self._stuck = None
            try:
                child = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            except OSError as error:
                return Answer(None, f"{self._command[0]}: {error.strerror or error}")
            return self._listen(child)

    def _listen(self, child: subprocess.Popen[bytes]) -> Answer:
        try:
            said, _ = child.communicate(timeout=self._deadline_s)
        except subprocess.TimeoutExpired:
            child.kill()
            try:
                child.communicate(timeout=_LAST_WORDS_S)
            except subprocess.TimeoutExpired:
                self._stuck = child
            return Answer(None, HUNG)
        return _understand(said, child.returncode)


def _understand(said: bytes, status: int) -> Answer:
    try:
        answer = json.loads(said)
    except ValueError:
        return Answer(None, f"the child ended with status {status} and no answer")
    try:
        if not answer["ok"]:
            return Answer(None, str(answer["reason"]), is_absent=bool(answer.get("absent")))
        return Answer(_cuda(answer), str(answer.get("reason") or OK))
    except (AttributeError, KeyError, TypeError, ValueError):
        return Answer(None, "the child's answer is not understood")


def _cuda(answer: Mapping[str, Any]) -> Cuda:
    capability, integrated = answer.get("capability"), answer.get("is_integrated")
    return Cuda(
        name=answer.get("name"),
        capability=None if capability is None else (int(capability[0]), int(capability[1])),
        is_integrated=None if integrated is None else bool(integrated),
        total_bytes=_whole(answer, "total_bytes"),
        free_bytes=_whole(answer, "free_bytes"),
        memory_clock_khz=_whole(answer, "memory_clock_khz"),
        memory_bus_bits=_whole(answer, "memory_bus_bits"),
    )


def _whole(answer: Mapping[str, Any], name: str) -> int | None:
    value = answer.get(name)
    return None if value is None else int(value)
