"""What is wrong with a request's headers that HTTP's parser does not look at: RFC 9112, 3.2 and 6.1. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.serving.replies import Header

SINGLE = (b"authorization", b"content-encoding", b"inference-header-content-length")
"""Headers of which two lines that differ would leave open which one counts."""


class RefusedHeadError(Exception):
    """What a request's head is refused for; raised where the parser calls, it ends the parsing.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def check_head(headers: Sequence[Header], version: str) -> None:
    """Raise ``RefusedHeadError`` for what HTTP's parser lets pass.

    Args:
        headers: names in lower case, and values.
        version: of HTTP, such as ``1.1``.
    """
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1 or (not hosts and version == "1.1"):
        raise RefusedHeadError(400, f"the request has {hosts} Host headers, exactly one is needed")
    for name in SINGLE:
        values = {value for each, value in headers if each == name}
        if len(values) > 1:
            raise RefusedHeadError(400, f"the request has {len(values)} headers {name.decode()} that differ")
    codings = b", ".join(value for name, value in headers if name == b"transfer-encoding")
    if codings and version == "1.0":
        # RFC 9112, 6.1: whoever passed it on may have known nothing of chunks, and seen the end elsewhere.
        raise RefusedHeadError(400, "HTTP/1.0 has no Transfer-Encoding: send Content-Length, or HTTP/1.1")
    if (coded := codings.strip().lower()) not in (b"", b"chunked"):
        # Without chunks at last nothing tells where the body ends: that is a mistake, not a coding that is not known.
        status, said = 501 if coded.endswith(b"chunked") else 400, codings[:64].decode("latin-1")
        raise RefusedHeadError(
            status, f"Transfer-Encoding {said!r} is not chunked: send Content-Encoding for compression"
        )
