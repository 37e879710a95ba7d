"""Whether a request's head can be read in one way only (RFC 9112). Pure.

A proxy in front of this port passes on what it takes for one request. Where the two disagree on where a request ends,
one hides inside another, and is answered with its rights. So what is doubtful is refused, not repaired.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from agent.health.refusals import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

BODILESS = ("GET", "HEAD")
MAX_LENGTH_DIGITS = 15
_REQUEST = re.compile(rb"([A-Z]{1,20}) [\x21-\x7e]+ HTTP/([1-9])\.([0-9])\r?\n")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*\r?\n")
_LENGTH = re.compile(rf"[0-9]{{1,{MAX_LENGTH_DIGITS}}}")


def check(request: bytes, fields: Sequence[bytes]) -> None:
    """Let a head pass.

    Args:
        request: the request line, with its line end.
        fields: the lines of the headers with theirs, without the empty one behind them.

    Raises:
        RefusedError: 400 for what is no request, or has a body that cannot be told from the next request.
    """
    line = _REQUEST.fullmatch(request)
    if line is None:
        raise _refused(f"this is no HTTP request: {request[:64]!r}")
    named: dict[str, list[str]] = {}
    for field in fields:
        match = _FIELD.fullmatch(field)
        if match is None:
            raise _refused(f"this line is no header: {field[:64]!r}")
        named.setdefault(match[1].decode().lower(), []).append(match[2].decode("latin-1"))
    _check_host(named.get("host", []), is_needed=line[2] == b"1" and line[3] != b"0")
    _check_body(line[1].decode(), named.get("content-length", []), named.get("transfer-encoding", []))


def _check_host(hosts: Sequence[str], *, is_needed: bool) -> None:
    if len(hosts) > 1:
        raise _refused(f"{len(hosts)} Host headers; a request has one")
    if is_needed and not hosts:
        raise _refused("no Host header; a request of HTTP/1.1 has one")


def _check_body(method: str, lengths: Sequence[str], encodings: Sequence[str]) -> None:
    if len(lengths) > 1:
        raise _refused(f"{len(lengths)} Content-Length headers; a request has one at most")
    if lengths and encodings:
        raise _refused("Content-Length and Transfer-Encoding; a request has one of them at most")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        told = lengths[0][:32]
        raise _refused(f"Content-Length {told!r} is no number of bytes of {MAX_LENGTH_DIGITS} digits at most")
    if method in BODILESS and (encodings or (lengths and int(lengths[0]))):
        raise _refused(f"{method} with a body; none is taken here")


def _refused(detail: str) -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, detail)
