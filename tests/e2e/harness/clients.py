"""Clients that keep their connections and ask one image over and over, and everything that they were told."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator

Floats = npt.NDArray[np.float32]
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Reply:
    """What a client was told: ``version`` and ``logits`` of an answer, ``error`` and ``retry_after`` of a refusal."""

    status: int
    version: str = ""
    logits: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    error: str = ""
    retry_after: str | None = None


class Client:
    """One connection.

    Args:
        port: of the server on loopback.
        path: of the inference route.
        image: ``(1, 1, 64, 64) float32``.
        is_binary: whether it speaks in raw tensors or in JSON.
    """

    def __init__(self, port: int, path: str, image: Floats, *, is_binary: bool) -> None:
        self.replies: list[Reply] = []
        self._path = path
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        tensor: dict[str, Any] = {"name": "input", "shape": image.shape, "datatype": "FP32"}
        raw = image.tobytes() if is_binary else b""
        tensor |= {"parameters": {"binary_data_size": len(raw)}} if is_binary else {"data": image.ravel().tolist()}
        header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": is_binary}}).encode()
        self._body = header + raw
        self._headers = {"Inference-Header-Content-Length": str(len(header))} if is_binary else {}
        self._connection.connect()
        self._socket = self._connection.sock

    @property
    def is_still_connected(self) -> bool:
        """Whether all that was said went over its first connection."""
        return self._connection.sock is self._socket

    def ask(self) -> Reply:
        """Send one request; raises what a lost or reset connection raises."""
        self._connection.request("POST", self._path, self._body, self._headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != http.HTTPStatus.OK:
            self.replies.append(
                Reply(response.status, error=json.loads(body)["error"], retry_after=response.getheader("retry-after"))
            )
        else:
            self.replies.append(_answer(body, response.getheader("inference-header-content-length")))
        return self.replies[-1]

    def hang_up(self) -> None:
        """Leave in the middle of a request, whichever thread asked it."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def _answer(body: bytes, length: str | None) -> Reply:
    header = json.loads(body[: int(length)] if length else body)
    output = header["outputs"][0]
    logits = np.frombuffer(body[int(length) :], "<f4") if length else np.array(output["data"], np.float32)
    return Reply(200, header["model_version"], logits)


@contextlib.contextmanager
def hammering(clients: list[Client]) -> Iterator[None]:
    """Let every client ask on while the block runs; raises what any of them met."""
    done = threading.Event()

    def ask_on(client: Client) -> None:
        while not done.is_set():
            client.ask()

    with ThreadPoolExecutor(len(clients), thread_name_prefix="client") as pool:
        asking = [pool.submit(ask_on, client) for client in clients]
        try:
            yield
        finally:
            done.set()
        for one in asking:
            one.result()
