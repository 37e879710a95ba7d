"""A listening socket that lets connections finish their handshake, and none begin one.

A client whose first segment is dropped sends it again after a second (RFC 6298), and is refused if the socket is closed
by then: unlike one whose connection is reset, it knows that nothing of its request was read.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>, which all machines share but alpha, mips, parisc and sparc
# Classic BPF, <linux/filter.h>: the filter of a TCP socket sees a segment from its header on, whose byte 13 has the
# flags; the value that is returned is how much of the segment to keep.
_FLAGS_AT, _SYN, _ACK = 13, 0x02, 0x10
_PROGRAM = (
    (0x30, 0, 0, _FLAGS_AT),  # load the byte
    (0x54, 0, 0, _SYN | _ACK),  # and
    (0x15, 0, 1, _SYN),  # a SYN without ACK begins a connection; anything else skips a line
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFF_FFFF),  # keep
)


def begin_no_connection(listener: socket.socket) -> None:
    """Drop what would begin a connection to ``listener``; does nothing where the kernel has no socket filters."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in _PROGRAM))
    with contextlib.suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(_PROGRAM), ctypes.addressof(program))
        )
