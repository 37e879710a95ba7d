"""One try at the work of a phase: every way in which it can end becomes an event."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import structlog

from agent.contract.errors import ErrorCode, ErrorInfo
from agent.deployment.machine import Done, Failed
from agent.deployment.ports import InterruptedStepError, StepError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.deployment.machine import Operation
    from agent.deployment.models import Served
    from agent.deployment.phases import Phase
    from agent.deployment.ports import Watch
    from agent.deployment.steps import Steps

log = structlog.get_logger("engine")


def attempt(
    steps: Steps, phase: Phase, operation: Operation, served: Mapping[str, Served], watch: Watch
) -> Done | Failed | None:
    """Do the work of ``phase``; return what it led to, or None if it was interrupted and nobody waits for it.

    Every line that this thread logs meanwhile carries the operation's id, whoever writes it.
    """
    with structlog.contextvars.bound_contextvars(id=operation.id):
        return _attempt(steps, phase, operation, served, watch)


def _attempt(
    steps: Steps, phase: Phase, operation: Operation, served: Mapping[str, Served], watch: Watch
) -> Done | Failed | None:
    try:
        watch.check()
        return steps.perform(phase, operation, served, watch)
    except InterruptedStepError:
        return None
    except StepError as error:
        return Failed(phase, error.info(str(phase)), error.is_transient, error.facts or None)
    except Exception as error:
        log.exception("step_error", phase=str(phase))
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = ErrorCode.INSUFFICIENT_DISK if is_full else ErrorCode.INTERNAL
        detail = f"{type(error).__name__}: {error}"
        info = ErrorInfo(code=code, detail=detail, phase=str(phase), retryable=True)
        return Failed(phase, info)
