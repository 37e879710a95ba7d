"""The configuration: a TOML file and systemd's credentials, overridden by the environment. The only reader of them.

``NIBBLED_DEVICE_ID`` overrides ``device_id``, ``NIBBLED_MQTT__HOST`` overrides ``host`` below ``[mqtt]``. A key that
does not exist is refused with the names that do, since a misspelt security setting must not pass for a default.
Lower floors receive values from here, never the settings object.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from agent import complaints, credentials, environment
from agent.contract.config import (
    BudgetSize,
    Flag,
    HealthInterval,
    Margin,
    Number,
    Patience,
    Size,
    Soak,
    Total,
    WatchInterval,
    WatchMode,
    Whole,
)
from agent.contract.topics import Group, Id, Prefix
from agent.environment import Environment
from agent.planning.memory import SERVED_ROWS
from agent.setting_types import Endpoint, Host, Label, PemPath, Port, TokenPath, is_local

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = Path("/etc/nibbled/nibbled.toml")
SERVICE_CREDENTIALS = Path("/run/credentials/nibbled.service")


class ConfigError(Exception):
    """The configuration cannot be used; the text names file, keys and what was expected."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Mqtt(_Section):
    """The broker."""

    host: Host = "127.0.0.1"
    port: Port = 1883
    topic_prefix: Prefix = "edge/v1"
    protocol: Literal["5", "3.1.1"] = "5"
    transport: Literal["tcp", "websockets"] = "tcp"
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    tls: Flag | None = None
    ca_file: PemPath | None = None
    cert_file: PemPath | None = None
    key_file: PemPath | None = None
    groups: tuple[Group, ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Mqtt:
        tls_files = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name) is not None]
        if self.tls is False and tls_files:
            raise ValueError(f"tls = false contradicts {', '.join(tls_files)}; expected no such file, or tls = true")
        if (self.cert_file is None) is not (self.key_file is None):
            raise ValueError("cert_file and key_file belong together; expected both or neither")
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file contradict each other; expected one of them")
        if self.username is None and (self.password is not None or self.password_file is not None):
            raise ValueError("a password needs a username; expected username beside it")
        return self

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted: as configured, else by port and certificates."""
        if self.tls is not None:
            return self.tls
        return self.port == 8883 or self.ca_file is not None or self.cert_file is not None  # noqa: PLR2004 - IANA secure-mqtt


class Serving(_Section):
    """The inference server."""

    host: Host = "127.0.0.1"
    http_port: Port = 8000
    grpc_port: Port | None = None
    token_file: TokenPath | None = None
    admin_token_file: TokenPath | None = None
    allow_anonymous: Flag = False
    cert_file: PemPath | None = None
    key_file: PemPath | None = None
    max_body: Size = 64 * 2**20
    max_connections: Annotated[Whole, Field(ge=1, le=100_000)] = 768
    head_s: Annotated[Number, Field(gt=0, le=600)] = 10.0
    body_s: Annotated[Number, Field(gt=0, le=3600)] = 60.0
    log_every: Annotated[Whole, Field(ge=0)] = 0
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[Whole, Field(ge=1, le=256)] = 1
    drain_s: Annotated[Number, Field(ge=0, le=600)] = 10.0
    hold_s: Annotated[Number, Field(ge=0, le=600)] = 30.0
    silence_s: Annotated[Number, Field(ge=2, le=3600)] = 30.0
    max_batch_rows: Annotated[Whole, Field(ge=1, le=SERVED_ROWS)] = SERVED_ROWS
    max_delay_ms: Annotated[Number, Field(ge=0, le=1000)] = 0.0
    residency: Literal["packed", "unpacked", "auto"] = "packed"
    compile: Literal["off", "auto"] = "off"
    cuda_graphs: Literal["off", "auto"] = "off"
    max_queue: Annotated[Whole, Field(ge=1, le=65536)] = 256

    @model_validator(mode="after")
    def _agrees(self) -> Serving:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        if not self.is_local and self.token_file is None and not self.allow_anonymous:
            raise ValueError(
                f"host {self.host} is reached from other machines; expected token_file (or the credential "
                "serving.token), or allow_anonymous = true to answer everyone"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can connect."""
        return is_local(self.host)


class Status(_Section):
    """The agent's own port: status page, /metrics, /healthz."""

    enabled: Flag = True
    host: Host = "127.0.0.1"
    port: Port = 8002
    token_file: TokenPath | None = None
    allowed_hosts: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can connect."""
        return is_local(self.host)


class Downloads(_Section):
    """Where checkpoints may come from, and what fetching them may take."""

    allowed_schemes: tuple[Literal["https", "http", "file", "s3", "gs", "az", "hf", "models", "oci"], ...] = ("https",)
    allowed_hosts: tuple[str, ...] = ()
    ca_file: PemPath | None = None
    stall_s: Annotated[Number, Field(gt=0)] = 30.0
    min_bytes_per_s: Size = 1024
    max_bytes_per_s: Size = 0
    max_size: Annotated[Size, Field(gt=0)] = 64 * 2**30
    disk_reserve: Size = 64 * 2**20
    token_files: dict[str, TokenPath] = {}
    store_files: dict[str, Path] = {}
    hugging_face_endpoint: Endpoint = "https://huggingface.co"
    mlflow_tracking_uri: Endpoint | None = None


class Trust(_Section):
    """Who may deploy."""

    require_signature: Flag = True
    require_command_signature: Flag = False
    keys_dir: Path = Path("/etc/nibbled/trust.d")


class Memory(_Section):
    """What a model may take."""

    reserve: Size = 512 * 2**20
    budget: BudgetSize = "auto"


class Health(_Section):
    """Telemetry."""

    interval_s: HealthInterval = 30.0


class Deployment(_Section):
    """The life of an operation."""

    soak_s: Soak = 10.0
    total_s: Total = 43_200.0
    build_threads: Annotated[Whole, Field(ge=1, le=256)] = 1


class Planning(_Section):
    """How the method for a model is chosen."""

    matrix_file: Path | None = None
    matrix_only: Flag = False
    purpose: Literal["serve", "research"] = "serve"


class Watch(_Section):
    """What follows when the memory budget changes for good; `agent.planning.patience` says why these defaults."""

    mode: WatchMode = "act"
    interval_s: WatchInterval = 5.0
    down_after_s: Patience = 30.0
    up_after_s: Patience = 300.0
    up_margin: Margin = 0.1
    min_dwell_s: Patience = 900.0


def _ports_agree(serving: Serving, status: Status) -> None:
    is_same_host = serving.host == status.host or {"0.0.0.0", "::"} & {serving.host, status.host}  # noqa: S104 - only compared
    page = {"status.port": status.port} if status.enabled and is_same_host else {}
    ports = {"serving.http_port": serving.http_port, "serving.grpc_port": serving.grpc_port, **page}
    taken: dict[int, str] = {}
    for name, port in ports.items():
        if port and port in taken:
            raise ValueError(f"{taken[port]} and {name} are both {port}; expected two different ports")
        taken[port or 0] = name


class Logging(_Section):
    """What is written to the log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Settings(BaseSettings):
    """The whole configuration, frozen."""

    model_config = SettingsConfigDict(
        env_prefix="NIBBLED_", env_nested_delimiter="__", frozen=True, extra="forbid", toml_file=None
    )

    device_id: Id = Field(default_factory=lambda: re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:64] or "device")
    state_dir: Path = Path("/var/lib/nibbled")
    labels: dict[Id, Label] = {}
    mqtt: Mqtt = Mqtt()
    serving: Serving = Serving()
    status: Status = Status()
    downloads: Downloads = Downloads()
    trust: Trust = Trust()
    memory: Memory = Memory()
    health: Health = Health()
    deployment: Deployment = Deployment()
    planning: Planning = Planning()
    watch: Watch = Watch()
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _agrees(self) -> Settings:
        _ports_agree(self.serving, self.status)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - ours reads the types
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before credentials and file, which may not both give a value."""
        file, variables = TomlConfigSettingsSource(settings_cls), Environment(settings_cls)
        given = credentials.read(_credentials_directory(settings_cls.model_config.get("toml_file")))
        twice = [key for key in credentials.given_twice(given, file()) if key not in _in(variables())]
        if twice:
            raise ConfigError(
                f"  {', '.join(twice)}: given here and as a credential of the service; expected one of them"
            )
        return init_settings, variables, InitSettingsSource(settings_cls, given), file


def load(path: Path | None = None) -> Settings:
    """Read the configuration.

    Args:
        path: the file; None means the default file if it exists, else defaults and environment alone.

    Raises:
        ConfigError: naming the file, every wrong key and variable at once and, for a misspelt one, the nearest that
            exists.
    """
    file = path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    text = "" if file is None else _read(file)

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    in_file: list[str] = []
    in_environment = environment.unknown(Settings)
    try:
        found = FromFile()
    except ValidationError as error:
        in_file, wrong = complaints.told(error.errors(include_url=False), Settings, Environment(Settings)())
        in_environment += wrong
    except environment.NoJsonError as error:
        in_environment.append(str(error))
    except ConfigError as error:
        raise ConfigError(f"{file or 'environment'}:\n{error}") from None
    except credentials.UnknownCredentialError as error:
        raise ConfigError(f"{_credentials_directory(file)}:\n  {error}") from None
    except ValueError as error:  # TOMLDecodeError is one
        raise ConfigError(f"{file}: {complaints.twice(error, text)}") from None
    if not in_file and not in_environment:
        return found
    blocks = ((file or "defaults and environment", in_file), ("environment", in_environment))
    raise ConfigError("\n".join("\n  ".join([f"{where}:", *lines]) for where, lines in blocks if lines))


def fixed_by_environment() -> frozenset[str]:
    """Return the keys, written ``section.key``, that the environment gives a value to."""
    return _in(Environment(Settings)())


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; see configs/ for examples") from None
    except IsADirectoryError:
        raise ConfigError(f"{file}: is a directory, expected a file; see configs/ for examples") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}") from None


def _in(given: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(f"{section}.{key}" for section, body in given.items() if isinstance(body, dict) for key in body)


def _credentials_directory(file: object) -> Path | None:
    """Return what systemd names; for a command beside the service, what that has, if this user may look into it."""
    named = os.environ.get("CREDENTIALS_DIRECTORY")
    if named:
        return Path(named)
    is_seen = file == DEFAULT_FILE and os.access(SERVICE_CREDENTIALS, os.R_OK | os.X_OK)
    return SERVICE_CREDENTIALS if is_seen else None
