"""The self-test of the device, run in the builder: which methods really work here, and what CUDA says of the box.

It is bounded: until it has an answer nothing can be planned, and who plans waits for it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from agent.deployment.phases import MAX_ATTEMPTS
from agent.deployment.ports import InterruptedStepError, StepError
from agent.deployment.runner import WorkWatch
from agent.devices.chain import SelfTest
from agent.planning.methods import METHODS

if TYPE_CHECKING:
    from agent.deployment.ports import Builder

log = structlog.get_logger("supervisor")
LIMIT_S = 600.0
"""Loading torch from a slow card and setting up CUDA takes a minute; what takes ten hangs."""


def run(builder: Builder, *, limit_s: float = LIMIT_S, tries: int = MAX_ATTEMPTS) -> SelfTest:
    """Return what works; where nothing could be found out, no method does and each says why.

    Args:
        builder: runs the job.
        limit_s: seconds that one try may take.
        tries: how often it is begun while it ends for a reason that may pass.
    """
    watch = WorkWatch(lambda _done, _total, _unit: None)
    timer = threading.Timer(limit_s, watch.interrupt)
    timer.daemon = True
    timer.start()
    try:
        found = builder.build({"job": "probe", "methods": list(METHODS)}, watch)
    except InterruptedStepError:
        return _nothing(f"the self-test had no result after {limit_s:g} s", None)
    except StepError as error:
        if tries > 1 and error.retryable:  # without its answer nothing could be deployed until the next start
            return run(builder, limit_s=limit_s, tries=tries - 1)
        return _nothing(error.detail, error.hint)
    finally:
        timer.cancel()
    versions = {name: found.get(name) for name in ("torch", "bitsandbytes")}
    return SelfTest(found["methods"], found["cuda"], versions)


def _nothing(detail: str, hint: str | None) -> SelfTest:
    log.error("self_test_failed", detail=detail, hint=hint)
    return SelfTest({name: {"ok": False, "detail": detail} for name in METHODS}, None, {})
