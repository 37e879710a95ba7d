"""From settings to the values, sockets and adapters that the supervisor wires; each says what to change if it fails."""

from __future__ import annotations

import importlib.util
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy as DownloadPolicy
from agent.adapters.mqtt_client import Broker
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.contract.matrix import MatrixError, parse_toml
from agent.devices import system, tegra
from agent.planning.matrix import MATRIX
from agent.planning.model_types import MODEL_TYPES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from agent.planning.matrix import Row
    from agent.settings import Serving, Settings


class StartError(Exception):
    """The agent cannot start as configured; the text says what to change."""


def prepare(state_dir: Path) -> Path:
    """Make the state directory and return it."""
    try:
        (state_dir / "run").mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise StartError(f"state_dir {state_dir}: {error.strerror}; create it or choose another state_dir") from None
    return state_dir


def listen(serving: Serving) -> socket.socket:
    """Return the socket of the inference API, bound and listening."""
    return _listen(serving.host, serving.http_port, "serving.http_port")


def listen_grpc(serving: Serving) -> socket.socket | None:
    """Return the socket of the inference API over gRPC, None where it is not configured.

    grpcio is looked for and not imported: only the server does that.
    """
    if serving.grpc_port is None:
        return None
    if importlib.util.find_spec("grpc") is None:
        raise StartError("serving.grpc_port needs the extra grpc: pip install 'nibbled[grpc]', or leave the key out")
    return _listen(serving.host, serving.grpc_port, "serving.grpc_port")


def _listen(host: str, port: int, key: str) -> socket.socket:
    try:
        return listen_tcp(host, port)
    except OSError as error:
        raise StartError(f"{key} {port} on {host}: {error.strerror or error}; choose another one") from None


def listen_control(path: Path) -> socket.socket:
    """Return the socket by which the server is controlled."""
    try:
        return listen_unix(path)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror or error}; choose another state_dir") from None


def matrix(settings: Settings) -> tuple[Row, ...]:
    """Return the decision matrix: the file's, or the built-in one."""
    file = settings.planning.matrix_file
    if file is None:
        return MATRIX
    try:
        return parse_toml(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise StartError(f"planning.matrix_file {file}: {error.strerror}") from None
    except (MatrixError, UnicodeDecodeError) as error:
        raise StartError(f"planning.matrix_file: {error}") from None


def downloader(settings: Settings, rate: Callable[[], int]) -> Downloader:
    """Return what fetches files, with its limits; ``rate`` returns the bytes/s that it may take now, 0 for all."""
    downloads, boot = settings.downloads, system.boot_id()
    policy = DownloadPolicy(
        schemes=frozenset(downloads.allowed_schemes),
        hosts=frozenset(downloads.allowed_hosts),
        stall_s=downloads.stall_s,
        min_bytes_per_s=downloads.min_bytes_per_s,
        max_bytes=downloads.max_size,
        reserve_bytes=downloads.disk_reserve,
        ca_file=str(downloads.ca_file) if downloads.ca_file else None,
        token_files={host: str(path) for host, path in downloads.token_files.items()},
        store_files={bucket: str(path) for bucket, path in downloads.store_files.items()},
    )
    return Downloader(policy, rate=rate, boot=None if boot == system.UNKNOWN_BOOT else boot)


def broker(settings: Settings) -> Broker:
    """Return where the broker is and how to log in."""
    mqtt = settings.mqtt
    password = mqtt.password.get_secret_value() if mqtt.password else None
    if mqtt.password_file is not None:
        try:
            password = mqtt.password_file.read_text(encoding="utf-8").rstrip("\n")
        except OSError as error:
            raise StartError(f"mqtt.password_file {mqtt.password_file}: {error.strerror}") from None
    files = {name: getattr(mqtt, name) for name in ("ca_file", "cert_file", "key_file")}
    return Broker(
        mqtt.host,
        mqtt.port,
        version=mqtt.protocol,
        transport=mqtt.transport,
        username=mqtt.username,
        password=password,
        use_tls=mqtt.uses_tls,
        **{name: str(path) if path else None for name, path in files.items()},
    )


def known_types() -> frozenset[str]:
    """Every name that a deploy may give as its model type: built in, an alias, or a plug-in's."""
    names = {alias for info in MODEL_TYPES.values() for alias in (info.name, *info.aliases)}
    return frozenset(names | {entry.name for entry in entry_points(group="nibbled.architectures")} | {"auto"})


def hardware() -> str | None:
    """Return the board's name, as a manifest's audience may have it."""
    return tegra.read().model
