"""``python -m agent.quantization``: one JSON job on stdin, events as JSON lines on stdout, logs on stderr.

Exit status 0 after a ``result``, 1 after an ``error``; anything else is a crash, and no event tells of it.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import TYPE_CHECKING, Any

from agent.quantization import process

if TYPE_CHECKING:
    from typing import TextIO


def main() -> int:
    """Run the job on stdin; returns the exit status."""
    process.die_with_parent()
    process.be_first_to_die()
    events = process.claim_stdout()
    try:
        job = json.loads(sys.stdin.buffer.read())
    except ValueError as error:
        return _fail(events, "internal", f"the job is not JSON: {error}", None, is_retryable=False)
    return _run(job, events)


def _run(job: Any, events: TextIO) -> int:
    """Import the heavy libraries only now: the parent's death is already watched."""
    if isinstance(job, dict) and job.get("job") == "answer":
        process.give_way()  # a person is curious; requests are not to wait for that
    from agent.quantization import failures, jobs  # noqa: PLC0415 - see above

    try:
        result = jobs.run(job, lambda event: process.send(events, event))
    except Exception as error:  # noqa: BLE001 - the process boundary: every failure becomes an event
        traceback.print_exc(file=sys.stderr)
        failure = failures.translate(error)
        return _fail(events, failure.code, failure.detail, failure.hint, is_retryable=failure.is_retryable)
    process.send(events, {"event": "result", **result})
    return 0


def _fail(events: TextIO, code: str, detail: str, hint: str | None, *, is_retryable: bool) -> int:
    process.send(events, {"event": "error", "code": code, "detail": detail, "hint": hint, "retryable": is_retryable})
    return 1


if __name__ == "__main__":
    sys.exit(main())
