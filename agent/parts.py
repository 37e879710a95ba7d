"""From settings to the values, sockets and adapters that the supervisor wires; each says what to change if it fails."""

from __future__ import annotations

import errno
import importlib.util
import socket
from importlib.metadata import entry_points
from typing import IO, TYPE_CHECKING, Any

from agent.adapters import directories, identity
from agent.adapters.broker import Broker
from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy as DownloadPolicy
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.adapters.tls import TlsFiles, check_server_files
from agent.contract.matrix import MatrixError, parse_toml
from agent.devices import system, tegra
from agent.planning.matrix import MATRIX
from agent.planning.model_types import MODEL_TYPES
from agent.tokens import TokenFileError, read_tokens

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.devices.chain import SelfTest
    from agent.planning.matrix import Row
    from agent.settings import Mqtt, Serving, Settings


class StartError(Exception):
    """The agent cannot start as configured; the text says what to change."""


def prepare(state_dir: Path) -> Path:
    """Make the state directory, durably, and return it."""
    try:
        directories.make(state_dir / "run", mode=0o750)
    except OSError as error:
        raise StartError(f"state_dir {state_dir}: {error.strerror}; create it or choose another state_dir") from None
    return state_dir


def claim(state_dir: Path) -> IO[str] | None:
    """Keep other agents from the state directory for as long as the file that is returned is open.

    Two would take the control socket, the server and the broker's session from each other, and write one journal.
    """
    lock = state_dir / "run" / "agent.lock"
    try:
        return directories.claim(lock)
    except directories.TakenError as error:
        raise StartError(
            f"state_dir {state_dir} is in use by {error}, an agent that runs; "
            "stop that one, or give this one a state_dir and a device_id of its own"
        ) from None
    except OSError as error:
        raise StartError(f"{lock}: {error.strerror}; choose another state_dir") from None


def listen(serving: Serving) -> socket.socket:
    """Return the socket of the inference API, bound and listening, with the files that guard it in order."""
    for name in ("token_file", "admin_token_file"):
        check_tokens(f"serving.{name}", getattr(serving, name))
    if serving.cert_file is not None and serving.key_file is not None:
        try:
            check_server_files(serving.cert_file, serving.key_file)
        except OSError as error:
            raise StartError(
                f"serving.cert_file {serving.cert_file} and key_file {serving.key_file}: {error}"
            ) from None
    if serving.otlp_endpoint is not None and importlib.util.find_spec("opentelemetry") is None:
        raise StartError(
            "serving.otlp_endpoint needs the extra otel: pip install 'nibbled[otel]', or leave the key out"
        )
    return _listen(serving.host, serving.http_port, "serving.http_port")


def check_tokens(key: str, path: Path | None) -> None:
    """Raise ``StartError`` for a file of tokens that is configured and cannot be used."""
    try:
        if path is not None:
            read_tokens(path)
    except TokenFileError as error:
        raise StartError(f"{key} {error}") from None


def listen_grpc(serving: Serving) -> socket.socket | None:
    """Return the socket of the inference API over gRPC, None where it is not configured.

    What guards the HTTP port guards this one; its files are looked at by ``listen``. grpcio is looked for and not
    imported: only the server does that.
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
        if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
            raise StartError(
                f"serving.host {host}: {error.strerror or error}; name an address of this machine, such as 127.0.0.1"
            ) from None
        raise StartError(f"{key} {port} on {host}: {error.strerror or error}; choose another one") from None


def server_options(serving: Serving, store: Path) -> tuple[str, ...]:
    """Return the server's arguments; ``store`` is where administrators load artifacts from."""
    given = {
        "device": serving.device,
        "threads": serving.threads,
        "drain-s": serving.drain_s,
        "hold-s": serving.hold_s,
        "max-batch-rows": serving.max_batch_rows,
        "max-delay-ms": serving.max_delay_ms,
        "max-queue": serving.max_queue,
        "max-body-bytes": serving.max_body,
        "max-connections": serving.max_connections,
        "head-s": serving.head_s,
        "body-s": serving.body_s,
        "log-every": serving.log_every,
        "otlp-endpoint": serving.otlp_endpoint,
        "token-file": serving.token_file,
        "admin-token-file": serving.admin_token_file,
        "store": store,
        "cert-file": serving.cert_file,
        "key-file": serving.key_file,
    }
    return tuple(text for name, value in given.items() if value is not None for text in (f"--{name}", str(value)))


def wanted(serving: Serving) -> dict[str, str]:
    """Return how releases are to be served, in the words of the server's terms."""
    return {"residency": serving.residency, "compile": serving.compile, "graphs": serving.cuda_graphs}


def relaxations(settings: Settings) -> tuple[str, ...]:
    """Return what was made less safe on purpose, in words for every report."""
    serving, found = settings.serving, []
    if not settings.trust.require_signature:
        found.append("trust.require_signature is off")
    if not serving.is_local and serving.token_file is None:
        found.append(f"serving.allow_anonymous: everyone who reaches {serving.host} may ask for inference")
    if not serving.is_local and serving.cert_file is None:
        found.append(f"serving.cert_file is not set: inference on {serving.host} is not encrypted")
    status = settings.status
    if status.enabled and not status.is_local and status.token_file is not None:
        found.append(f"status.token_file: its tokens reach {status.host} without encryption")
    return tuple(found)


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
        hugging_face_endpoint=downloads.hugging_face_endpoint,
        mlflow_tracking_uri=downloads.mlflow_tracking_uri,
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


def tls_files(mqtt: Mqtt) -> TlsFiles:
    """Return where the certificates for the broker lie."""
    return TlsFiles(*(str(path) if path else None for path in (mqtt.ca_file, mqtt.cert_file, mqtt.key_file)))


def differing_names(settings: Settings) -> list[str]:
    """Return a sentence for each name that the broker may know this device by and that is not its id."""
    known = identity.names(settings.mqtt.username, tls_files(settings.mqtt))
    return identity.differences(settings.device_id, known)


def known_types() -> frozenset[str]:
    """Every name that a deploy may give as its model type: built in, an alias, or a plug-in's."""
    names = {alias for info in MODEL_TYPES.values() for alias in (info.name, *info.aliases)}
    return frozenset(names | {entry.name for entry in entry_points(group="nibbled.architectures")} | {"auto"})


def hardware() -> str | None:
    """Return the board's name, as a manifest's audience may have it."""
    return tegra.read().model


def inference_url(listener: socket.socket, serving: Serving) -> str:
    """Return where inference is asked for, as people would type it."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if serving.cert_file else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/v2"


def address(listener: socket.socket | None) -> str | None:
    """Return the address that a socket listens on, None without one."""
    return None if listener is None else "{}:{}".format(*listener.getsockname()[:2])


def capabilities(settings: Settings, tested: SelfTest | None, board: str | None) -> dict[str, Any]:
    """Return what ``capabilities`` says of a device, as far as its self-test has ended."""
    return {
        "methods": dict(tested.methods) if tested else {},
        "model_types": list(MODEL_TYPES),
        "versions": {**(tested.versions if tested else {}), "cuda": tested.cuda if tested else None},
        "hardware": board,
        "groups": settings.mqtt.groups,
        "labels": settings.labels,
    }
