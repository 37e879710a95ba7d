"""How much one client may ask of the server, in bytes, seconds and connections. Values only.

Every bound exists for somebody who means harm or is broken: a client that is merely slow, or far away, stays below
them. What a request may hold once it is read is bounded where it is read, see ``oip``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one listening socket.

    Attributes:
        max_body_bytes: larger bodies are refused, before they are read and again when they are decompressed.
        max_connections: more are answered with 503 and closed. The default lies below the customary 1,024 file
            descriptors of a process, with room for the supervisor's socket and for files.
        max_head_bytes: of a request's line and headers.
        head_s: from the first byte of a request to the end of its headers; also what a silent new connection is
            granted.
        body_s: what a whole body may take.
        body_grace_s: how long a body may stay behind ``body_bytes_per_s``: one that drips ends here, not at ``body_s``.
        body_bytes_per_s: what arrives on average from then on at least.
        keep_alive_s: how long a connection may idle. An idle one costs little here, and every client that reconnects
            pays a round trip.
        write_s: how long a client may leave a reply unread.
        half_closed_s: how long an answer may take when the client has closed its end: until then it may have closed
            only for writing, after that it counts as gone.
    """

    max_body_bytes: int = 64 * 1024 * 1024
    max_connections: int = 768
    max_head_bytes: int = 64 * 1024
    head_s: float = 10.0
    body_s: float = 60.0
    body_grace_s: float = 10.0
    body_bytes_per_s: int = 8 * 1024
    keep_alive_s: int = 75
    write_s: float = 30.0
    half_closed_s: float = 1.0


DEFAULT = Limits()
