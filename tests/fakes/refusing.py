"""A broker that lets nobody hear some filters and says so in SUBACK; as much of MQTT 5 as `nibblectl` needs."""

from __future__ import annotations

import socketserver
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedIOBase
    from types import TracebackType

CONNECT, CONNACK, SUBSCRIBE, SUBACK, PUBLISH = 0x10, b"\x20", 0x80, b"\x90", b"\x30"
GRANTED, NOT_AUTHORIZED = b"\x01", b"\x87"


class RefusingBroker(socketserver.ThreadingTCPServer):
    """Listens on a free port of the loopback interface; use as a context manager.

    Args:
        refuses: filters that nobody may hear.
        says: topic and payload that a connection hears once, after its first subscription.
    """

    daemon_threads = True

    def __init__(self, refuses: Sequence[str] = (), says: Sequence[tuple[str, bytes]] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.refuses, self.says = refuses, says
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self.server_address[1]
        return port

    def __enter__(self) -> RefusingBroker:  # noqa: PYI034 - typing.Self needs Python 3.11
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Connection(socketserver.StreamRequestHandler):
    server: RefusingBroker

    def handle(self) -> None:
        while head := self.rfile.read(1):
            body = self.rfile.read(_length(self.rfile))
            if head[0] & 0xF0 == CONNECT:
                self._send(CONNACK, b"\x00\x00\x00")
            elif head[0] & 0xF0 == SUBSCRIBE:
                self._subscribed(body)

    def _subscribed(self, body: bytes) -> None:
        refused, at = self.server.refuses, 3 + body[2]  # behind the number and the properties
        reasons = b""
        while at < len(body):
            end = at + 2 + int.from_bytes(body[at : at + 2], "big")
            reasons += NOT_AUTHORIZED if body[at + 2 : end].decode() in refused else GRANTED
            at = end + 1
        self._send(SUBACK, body[:2] + b"\x00" + reasons)
        for topic, payload in self.server.says:
            self._send(PUBLISH, len(topic).to_bytes(2, "big") + topic.encode() + b"\x00" + payload)

    def _send(self, head: bytes, body: bytes) -> None:
        assert len(body) < 128, "its length would be two bytes"
        self.wfile.write(head + bytes([len(body)]) + body)


def _length(file: BufferedIOBase) -> int:
    value, shift = 0, 0
    while True:
        byte = file.read(1)[0]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # the bit that says that more follows
            return value
