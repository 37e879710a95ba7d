"""One try over http or https: ask for what is missing, follow redirects, write what comes.

Never more bytes than announced are written, and none when the answer says beforehand that they would be. Each hop is
judged as the first one was, and carries only the token of its own host.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from agent.adapters.download.asking import HEADERS
from agent.adapters.download.connection import answer_to
from agent.adapters.download.pace import Bucket, Speed, read_size
from agent.adapters.download.policy import allow, redact
from agent.adapters.download.resume import Asked, Body, begin, too_large, wrong_size
from agent.adapters.download.retrying import TransientError
from agent.adapters.download.tokens import authorization
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from urllib3 import BaseHTTPResponse

    from agent.adapters.download.location import Location
    from agent.adapters.download.part import Part
    from agent.adapters.download.policy import Policy
    from agent.deployment.ports import Watch

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)


class Transfer:
    """Tries to bring a part to its end.

    Args:
        policy: the limits.
        rate: returns the bytes/s that may be taken, 0 for all.
        monotonic: the time.
    """

    def __init__(self, policy: Policy, rate: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._policy = policy
        self._rate = rate
        self._monotonic = monotonic

    def attempt(self, location: Location, part: Part, size: int | None, watch: Watch) -> None:
        """Ask once and write what comes.

        Args:
            location: where from.
            part: what is there already.
            size: bytes that the file must have, or None.
            watch: for progress, and for the wish to stop.

        Raises:
            TransientError: worth another try; what came is in ``part``.
            StepError: it is not.
        """
        asked, url = Asked(part.length, part.validator), location.url
        with ExitStack() as stack:
            response = self._follow(location, asked, watch, stack)
            body = begin(response.status, response.headers, asked, size, url, advice=location.advice)
            if body.total is not None and body.total > self._policy.max_bytes:
                raise too_large(url, body.total, self._policy.max_bytes)
            part.begin(body.offset, body.total, body.validator)
            self._receive(response, body, part, url=url, size=size, watch=watch)

    def _follow(self, location: Location, asked: Asked, watch: Watch, stack: ExitStack) -> BaseHTTPResponse:
        url = hop = location.url
        is_downgraded = was_secure = False
        for number in range(MAX_REDIRECTS + 1):
            with _named(url, number):
                parts = allow(hop, self._policy, schemes=location.schemes)
                was_secure |= parts.scheme == "https"
                is_downgraded = was_secure and parts.scheme != "https"
                token = authorization(parts, self._policy, is_downgraded=is_downgraded)
                own = {} if number else location.headers
                one = ExitStack()
                headers = {**HEADERS, **asked.headers(), **token, **own}
                response = one.enter_context(answer_to(parts, headers, self._policy, watch))
            if response.status not in _REDIRECTS:
                stack.push(one)
                return response
            onward = response.headers.get("Location", "")
            one.close()
            with _named(url, number + 1):
                hop = _joined(hop, onward)
        raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{redact(url)}: more than {MAX_REDIRECTS} redirects")

    def _receive(
        self, response: BaseHTTPResponse, body: Body, part: Part, *, url: str, size: int | None, watch: Watch
    ) -> None:
        bucket, speed = Bucket(self._monotonic()), Speed(self._policy.min_bytes_per_s, self._policy.slow_s)
        most = self._policy.max_bytes if size is None else size
        while True:
            watch.check()
            rate, began = self._rate(), self._monotonic()
            chunk = response.read1(read_size(rate), decode_content=False)
            now = self._monotonic()
            if not chunk:
                break
            if part.length + len(chunk) > most:
                if size is None:
                    raise too_large(url, part.length + len(chunk), most)
                raise wrong_size(url, part.length + len(chunk), size)
            part.write(chunk, body.total)
            watch.progress(part.length, body.total, "bytes")
            speed.note(len(chunk), now - began, rate)
            pause = bucket.take(len(chunk), rate, now)
            if pause > 0.0:
                watch.wait(pause)
        if body.total is not None and part.length < body.total:
            raise TransientError(f"the connection ended after {part.length} of {body.total} bytes")


def _joined(base: str, onward: str) -> str:
    try:
        return urljoin(base, onward)
    except ValueError as error:
        raise StepError(ErrorCode.FORBIDDEN_SOURCE, f"not a usable URL: {error}") from None


@contextmanager
def _named(url: str, number: int) -> Iterator[None]:
    """Let what a redirect is refused for say which one of ``url`` it was."""
    try:
        yield
    except StepError as error:
        if not number or error.code is not ErrorCode.FORBIDDEN_SOURCE:
            raise
        raise StepError(error.code, f"redirect {number} of {redact(url)}: {error.detail}", error.hint) from None
