"""One small question to a registry, such as where a file lies; files themselves are `transfer`'s.

Bound by the same policy. Redirects are not followed: a registry that answers with one is behind a login, or elsewhere.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.adapters.download.connection import answer_to
from agent.adapters.download.location import no_advice
from agent.adapters.download.policy import allow, redact
from agent.adapters.download.resume import OK, refusal
from agent.adapters.download.retrying import TransientError
from agent.adapters.download.tokens import authorization
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.adapters.download.location import Advice
    from agent.adapters.download.policy import Policy
    from agent.deployment.ports import Watch

HEADERS = {"Accept-Encoding": "identity", "User-Agent": "nibbled"}
MOST_BYTES = 4 * 2**20
"""What a registry of the Open Container Initiative has to take as a manifest, and no less."""
_READ = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """What a registry said."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def content(self, advice: Advice = no_advice) -> bytes:
        """Return the body of an answer that is one.

        Raises:
            TransientError: the registry cannot answer now.
            StepError: ``download_failed``: it does not.
        """
        if self.status != OK:
            raise refusal(self.status, self.headers, self.url, advice)
        return self.body

    def json(self, advice: Advice = no_advice) -> dict[str, Any]:
        """Return the object in the body; raises as ``content`` does, and for what is none."""
        try:
            found = json.loads(self.content(advice))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise StepError(
                ErrorCode.DOWNLOAD_FAILED,
                f"{redact(self.url)}: the answer is no JSON object",
                "check that the address is that of the registry's API, and not of a page in front of it",
            )
        return found


def ask(url: str, policy: Policy, watch: Watch, headers: Mapping[str, str] | None = None) -> Answer:
    """Ask for something small.

    Args:
        url: over http or https.
        policy: the limits; a token for the host is sent as with every download.
        watch: whoever waits for it may stop waiting.
        headers: to send besides, an ``Authorization`` instead of the host's token.

    Raises:
        TransientError: the host could not be reached, or the line broke.
        StepError: ``forbidden_source`` or ``download_failed``.
    """
    parts = allow(url, policy, schemes=policy.web)
    token = authorization(parts, policy, is_downgraded=False)
    until = time.monotonic() + policy.head_s
    body = bytearray()
    with answer_to(parts, {**HEADERS, **token, **(headers or {})}, policy, watch) as response:
        while chunk := response.read1(_READ, decode_content=False):
            watch.check()
            body += chunk
            if len(body) > MOST_BYTES:
                raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{redact(url)}: an answer of more than {MOST_BYTES} bytes")
            if time.monotonic() > until:
                raise TransientError(f"no whole answer within {policy.head_s:g} s from {parts.hostname}")
        return Answer(url, response.status, response.headers, bytes(body))
