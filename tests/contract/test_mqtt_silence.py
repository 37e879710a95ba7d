"""An operator's program and a broker that hangs up without a word: what may be wrong is said."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from agent.adapters.mqtt_operator import BrokerError, Messages

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def rude() -> Iterator[int]:
    """Return the port of something that closes every connection once it has heard something, as one with TLS does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:  # the listener was closed
                    return
                with client:
                    client.recv(1024)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_broker_that_closes_the_connection_may_want_tls(rude: int) -> None:
    with pytest.raises(BrokerError, match=r"no answer in 2 s, it closes the connection: does it want TLS \(--tls\)\?"):
        Messages("127.0.0.1", rude, timeout_s=2.0).__enter__()


def test_a_broker_that_says_nothing_is_no_reason_to_guess() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(BrokerError, match=r"no answer in 1 s$"):
        Messages("127.0.0.1", int(mute.getsockname()[1]), timeout_s=1.0).__enter__()
