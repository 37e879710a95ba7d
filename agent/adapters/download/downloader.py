"""The way in: fetches one file, from wherever it lies, as often as that makes sense.

What may be reached, how long, how fast and how large is the policy's word; what a 4xx says is final; everything else is
tried again with growing pauses, and gone on with where it stopped. `docs/downloads.md` tells the rules as an operator
sees them.

Not done here: judging the content. The store hashes the whole file before it admits it.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

from agent.adapters.download import local, locating
from agent.adapters.download.connection import judge_spelt
from agent.adapters.download.part import Part
from agent.adapters.download.policy import Policy, allow, redact
from agent.adapters.download.resume import place_of, too_large
from agent.adapters.download.retrying import MOST_PATIENCE_S, TransientError, Tries
from agent.adapters.download.transfer import Transfer
from agent.contract.errors import ErrorCode
from agent.deployment.ports import InterruptedStepError, StepError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.deployment.ports import Watch


class Downloader:
    """Implements the ``Sources`` port.

    Args:
        policy: the limits.
        rate: returns the bytes/s that may be taken now, 0 for all.
        boot: this run of the operating system, None if unknown; see `notes` for what it is good for.
        monotonic: the time.
        chance: uniform in [0, 1), for the pauses.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        rate: Callable[[], int] = lambda: 0,
        boot: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._boot = boot
        self._chance = chance
        self._transfer = Transfer(policy, rate, monotonic)

    def judge(self, url: str) -> None:
        """Refuse an address that may not be asked for, as far as that shows without a network: a name is not resolved.

        Raises:
            StepError: ``forbidden_source``.
        """
        asked = locating.first_asked(url, self._policy)
        if asked is not None:
            judge_spelt(asked, self._policy)

    def fetch(self, url: str, destination: Path, size: int | None, watch: Watch) -> bool:
        """Fetch ``url`` into ``destination``, going on where an earlier try stopped.

        Args:
            url: where from.
            destination: the partial file; ``destination`` plus ``.meta`` remembers what it is a part of.
            size: bytes that the file must have, or None if unknown.
            watch: for progress, and for the wish to stop.

        Returns:
            Whether the file came in pieces: if its digest is wrong, it may be right when fetched in one.

        Raises:
            StepError: ``forbidden_source``, ``download_failed`` or ``insufficient_disk``, with the numbers and whether
                retrying can help.
            InterruptedStepError: the partial file is kept.
        """
        parts = allow(url, self._policy)
        if size is not None and size > self._policy.max_bytes:
            raise too_large(url, size, self._policy.max_bytes)
        part = Part(destination, place_of(url), boot=self._boot, reserve_bytes=self._policy.reserve_bytes)
        with contextlib.closing(part):
            if parts.scheme == "file":
                local.copy(parts, part, size, self._policy, watch)
                part.keep()
                return False
            part.recover(size, watch)
            if size is None or part.length != size:
                self._bring(url, part, size, watch)
            part.keep()
            return part.is_pieced

    def _bring(self, url: str, part: Part, size: int | None, watch: Watch) -> None:
        tries = Tries(furthest=part.length)
        while True:
            watch.check()
            try:
                self._transfer.attempt(locating.locate(url, self._policy, watch), part, size, watch)
            except TransientError as error:
                self._come_to_terms(error, tries, part, url, watch)
            except InterruptedStepError:
                with contextlib.suppress(StepError):
                    part.keep()
                raise
            else:
                return

    def _come_to_terms(self, error: TransientError, tries: Tries, part: Part, url: str, watch: Watch) -> None:
        """Wait for the next try, or give up."""
        watch.check()  # the line may have been cut because nobody waits
        if error.forget:
            part.forget()
        part.keep()
        tries.failed(part.length)
        if tries.is_over or error.pause_s > MOST_PATIENCE_S:
            waits = f", not to be asked for {error.pause_s:.0f} s" if error.pause_s > MOST_PATIENCE_S else ""
            raise StepError(
                ErrorCode.DOWNLOAD_FAILED,
                f"{redact(url)}: {error}{waits} ({tries.made} tries, {part.length} bytes so far)",
                "check that the device reaches the host; sent again, the download goes on where it stopped",
                retryable=True,
            )
        watch.wait(max(error.pause_s, tries.pause_s(self._chance())))
