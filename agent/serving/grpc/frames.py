"""Where a stream of HTTP/2 frames can take another one, and the frame that sends a client away. Pure.

RFC 9113, 4.1 (frames), 4.3 (a header block is not interrupted), 6.8 (GOAWAY).
"""

from __future__ import annotations

HEAD_BYTES = 9
HEADERS, PUSH_PROMISE, CONTINUATION = 1, 5, 9
END_HEADERS = 0x4
# "Open no more streams here": the last stream of all, no error. Those that are open go on, also those on their way.
GO_AWAY = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + b"\x7f\xff\xff\xff" + b"\x00\x00\x00\x00"


class Boundaries:
    """Follows a stream of frames from its first byte.

    Attributes:
        is_at: whether what was seen last ends where another frame may follow; not before the first frame.
    """

    def __init__(self) -> None:
        self.is_at = False
        self._head = b""
        self._left = 0
        self._is_in_block = False

    def follow(self, data: bytes) -> int | None:
        """Return the last place in ``data``, which comes next, behind which a frame may be put; None without one."""
        place, found = 0, None
        while place < len(data):
            if self._left:
                taken = min(self._left, len(data) - place)
                self._left -= taken
                place += taken
            else:
                piece = data[place : place + HEAD_BYTES - len(self._head)]
                place += len(piece)
                self._begin(self._head + piece)
            self.is_at = not (self._left or self._head or self._is_in_block)
            if self.is_at:
                found = place
        return found

    def _begin(self, head: bytes) -> None:
        if len(head) < HEAD_BYTES:
            self._head = head
            return
        self._head, self._left = b"", int.from_bytes(head[:3], "big")
        if head[3] in (HEADERS, PUSH_PROMISE, CONTINUATION):
            self._is_in_block = not head[4] & END_HEADERS
