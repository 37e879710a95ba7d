"""What an answer to a request is the beginning of: the file, the rest of it, or nothing. Pure.

A part is gone on with only under a validator, and only if the answer says that it is the same entity still: by
``If-Range`` (RFC 9110, 13.1.5), by the ``ETag`` of a 206, by the place and the total of its ``Content-Range``. What a
server claims is no proof: the store hashes the whole file before it admits it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent.adapters.download.location import no_advice
from agent.adapters.download.policy import redact
from agent.adapters.download.retrying import TransientError, retry_after
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.adapters.download.location import Advice

_BUSY = (408, 425, 429)
OK, _PARTIAL, _UNSATISFIABLE, _SERVER_ERROR = 200, 206, 416, 500
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class Asked:
    """The part that is there: its length, and the validator of the entity that it is a part of."""

    offset: int = 0
    validator: str | None = None

    @property
    def is_range(self) -> bool:
        """Whether only the rest is asked for."""
        return self.offset > 0 and self.validator is not None

    def headers(self) -> dict[str, str]:
        """Return what a request has to say."""
        return {"Range": f"bytes={self.offset}-", "If-Range": str(self.validator)} if self.is_range else {}


@dataclass(frozen=True)
class Body:
    """The body of an answer: where in the file it begins, the file's length if known, and the file's validator."""

    offset: int
    total: int | None
    validator: str | None


def begin(
    status: int, headers: Mapping[str, str], asked: Asked, size: int | None, url: str, *, advice: Advice = no_advice
) -> Body:
    """Return what the body of an answer is.

    Args:
        status: of the answer.
        headers: of the answer.
        asked: what was there when it was asked for.
        size: bytes that the file must have, or None.
        url: what was asked, for errors.
        advice: what to do where the answer is final.

    Raises:
        TransientError: ask again; ``forget`` when what is there is of no use.
        StepError: asking again would be of no use.
    """
    if status == OK:
        return _checked(_whole(headers), headers, size, url)
    if status == _PARTIAL:
        return _checked(_rest(headers, asked), headers, size, url)
    if status == _UNSATISFIABLE and asked.is_range:
        raise TransientError(f"HTTP 416 to a range from {asked.offset}", forget=True)
    raise refusal(status, headers, url, advice)


def refusal(status: int, headers: Mapping[str, str], url: str, advice: Advice) -> TransientError | StepError:
    """Return the error for an answer without what was asked for."""
    if status >= _SERVER_ERROR or status in _BUSY:
        return TransientError(f"HTTP {status}", retry_after(headers.get("Retry-After"), headers.get("Date")))
    hint = advice(status, headers) or "check the URL and the rights of its credentials"
    return StepError(ErrorCode.DOWNLOAD_FAILED, f"{redact(url)}: HTTP {status}", hint)


def wrong_size(url: str, length: int | None, size: int, encoding: str | None = None) -> StepError:
    """Return the error for a file that is not as long as it was announced."""
    packed = f", sent as {encoding}, which was not asked for" if encoding else ""
    return StepError(
        ErrorCode.DOWNLOAD_FAILED,
        f"{redact(url)} has {length} bytes or more{packed}, {size} were announced",
        "compare the file with its manifest",
    )


def too_large(url: str, length: int, most: int) -> StepError:
    """Return the error for a file that is larger than any may be."""
    return StepError(
        ErrorCode.DOWNLOAD_FAILED,
        f"{redact(url)} has {length} bytes or more, downloads.max_size allows {most}",
        "raise it, if the file is meant",
    )


def place_of(url: str) -> str:
    """Return a digest of where ``url`` leads, without what a renewed presigned URL changes and nobody may keep."""
    parts = urlsplit(url)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}{parts.path}"
    return hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()


def _whole(headers: Mapping[str, str]) -> Body:
    length = headers.get("Content-Length", "")
    return Body(0, int(length) if length.isdecimal() else None, _validator(headers))


def _rest(headers: Mapping[str, str], asked: Asked) -> Body:
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if not asked.is_range or found is None or int(found[1]) != asked.offset:
        raise TransientError(
            f"HTTP 206 with {headers.get('Content-Range', 'no Content-Range')[:80]!r}, {asked.offset} was asked for",
            forget=True,
        )
    validator = _validator(headers)
    if validator not in (None, asked.validator):
        raise TransientError("the file changed meanwhile: HTTP 206 with another validator", forget=True)
    return Body(asked.offset, None if found[3] == "*" else int(found[3]), asked.validator)


def _checked(body: Body, headers: Mapping[str, str], size: int | None, url: str) -> Body:
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity" and (size is None or body.total != size):
        if size is None:
            raise StepError(
                ErrorCode.DOWNLOAD_FAILED,
                f"{redact(url)} is sent as {encoding}, which was not asked for, and its size was not announced",
                "serve the file as it is, or announce its size",
            )
        raise wrong_size(url, body.total, size, encoding)
    if size is not None and body.total is not None and body.total != size:
        raise wrong_size(url, body.total, size)
    return Body(body.offset, body.total if body.total is not None else size, body.validator)


def _validator(headers: Mapping[str, str]) -> str | None:
    """Return what ``If-Range`` may carry: a strong tag, else the date of the last change."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
