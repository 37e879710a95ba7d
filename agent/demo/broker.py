"""A broker for the demo, bound to loopback: mosquitto where it is installed, else the one in the wheel ``iotcore``."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_S = 10.0


class BrokerStartError(Exception):
    """No broker could be started."""


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def broker(directory: Path) -> Iterator[tuple[str, int]]:
    """Run a broker while the block runs; yield its name and port.

    Raises:
        BrokerStartError: naming what to install.
    """
    port = free_port()
    executable = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if executable:
        with _mosquitto(executable, directory, port):
            yield "mosquitto", port
    else:
        with _iotcore(directory, port):
            yield "iotcore", port


@contextlib.contextmanager
def _mosquitto(executable: str, directory: Path, port: int) -> Iterator[None]:
    config = directory / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n", encoding="utf-8")
    with (directory / "mosquitto.log").open("wb") as output:
        child = subprocess.Popen([executable, "-c", str(config)], stdout=output, stderr=output)
        try:
            _await_port(port, "mosquitto")
            yield
        finally:
            child.terminate()
            child.wait(10.0)


@contextlib.contextmanager
def _iotcore(directory: Path, port: int) -> Iterator[None]:
    try:
        from iotcore import Broker  # noqa: PLC0415 - an extra, needed here only
    except ImportError:
        raise BrokerStartError(
            "no broker found: install mosquitto (apt install mosquitto) or the extra: pip install 'nibbled[demo]'"
        ) from None
    config = directory / "iotcore.toml"
    config.write_text(_IOTCORE.format(port=port), encoding="utf-8")
    with Broker(config_path=str(config)):
        yield


def _await_port(port: int, name: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:  # noqa: PERF203 - a poll, not a hot loop
            if time.monotonic() > deadline:
                raise BrokerStartError(f"{name} did not listen on port {port} within {START_S:.0f} s") from None
            time.sleep(0.05)
        else:
            return


# Its defaults would listen on every address, speak MQTT 3.1.1 only and drop payloads over 20 KiB.
_IOTCORE = """
id = 0

[router]
id = 0
max_connections = 64
max_outgoing_packet_count = 200
max_segment_size = 16777216
max_segment_count = 4

[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 262144
max_inflight_count = 100
"""
