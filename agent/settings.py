"""The configuration: a TOML file and systemd's credentials, overridden by the environment. The only reader of them.

``NIBBLED_DEVICE_ID`` overrides ``device_id``, ``NIBBLED_MQTT__HOST`` overrides ``host`` below ``[mqtt]``. A key that
does not exist is refused with the names that do, since a misspelt security setting must not pass for a default.
Lower floors receive values from here, never the settings object.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from agent import credentials
from agent.contract.config import (
    BudgetSize,
    HealthInterval,
    Margin,
    Patience,
    Size,
    Soak,
    Total,
    WatchInterval,
    WatchMode,
)
from agent.contract.secrets import redacted
from agent.contract.topics import Id
from agent.contract.wire import complaint
from agent.planning.memory import SERVED_ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = Path("/etc/nibbled/nibbled.toml")


class ConfigError(Exception):
    """The configuration cannot be used; the text names file, keys and what was expected."""


Port = Annotated[int, Field(ge=0, le=65535)]


def _is_path(path: Path) -> Path:
    if "-----BEGIN" in str(path):
        raise ValueError("give the path of a file, not what is in it")
    return path


PemPath = Annotated[Path, AfterValidator(_is_path)]


def _is_token_path(path: Path) -> Path:
    if not path.is_absolute():
        # Also what is neither here nor there: a token in place of its file would be shown by every error.
        raise ValueError("give the absolute path of a file, not the token")
    return path


TokenPath = Annotated[Path, AfterValidator(_is_token_path)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Mqtt(_Section):
    """The broker."""

    host: str = "127.0.0.1"
    port: Port = 1883
    topic_prefix: str = "edge/v1"
    protocol: Literal["5", "3.1.1"] = "5"
    transport: Literal["tcp", "websockets"] = "tcp"
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    tls: bool | None = None
    ca_file: PemPath | None = None
    cert_file: PemPath | None = None
    key_file: PemPath | None = None
    groups: tuple[Id, ...] = ()

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

    host: str = "127.0.0.1"
    http_port: Port = 8000
    grpc_port: Port | None = None
    token_file: TokenPath | None = None
    admin_token_file: TokenPath | None = None
    allow_anonymous: bool = False
    cert_file: PemPath | None = None
    key_file: PemPath | None = None
    max_body: Size = 64 * 2**20
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 768
    head_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    body_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    log_every: Annotated[int, Field(ge=0)] = 0
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    drain_s: Annotated[float, Field(ge=0, le=600)] = 10.0
    hold_s: Annotated[float, Field(ge=0, le=600)] = 30.0
    silence_s: Annotated[float, Field(ge=2, le=3600)] = 30.0
    max_batch_rows: Annotated[int, Field(ge=1, le=SERVED_ROWS)] = SERVED_ROWS
    max_delay_ms: Annotated[float, Field(ge=0, le=1000)] = 0.0
    residency: Literal["packed", "unpacked", "auto"] = "packed"
    compile: Literal["off", "auto"] = "off"
    cuda_graphs: Literal["off", "auto"] = "off"
    max_queue: Annotated[int, Field(ge=1, le=65536)] = 256

    @model_validator(mode="after")
    def _files_belong_together(self) -> Serving:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        return self

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can connect."""
        return _is_local(self.host)


class Status(_Section):
    """The agent's own port: status page, /metrics, /healthz."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 8002
    token_file: TokenPath | None = None
    allowed_hosts: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can connect."""
        return _is_local(self.host)


class Downloads(_Section):
    """Where checkpoints may come from, and what fetching them may take."""

    allowed_schemes: tuple[Literal["https", "http", "file", "s3", "gs", "az"], ...] = ("https",)
    allowed_hosts: tuple[str, ...] = ()
    ca_file: PemPath | None = None
    stall_s: Annotated[float, Field(gt=0)] = 30.0
    min_bytes_per_s: Size = 1024
    max_bytes_per_s: Size = 0
    max_size: Annotated[Size, Field(gt=0)] = 64 * 2**30
    disk_reserve: Size = 64 * 2**20
    token_files: dict[str, Path] = {}
    store_files: dict[str, Path] = {}


class Trust(_Section):
    """Who may deploy."""

    require_signature: bool = True
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
    build_threads: Annotated[int, Field(ge=1, le=256)] = 1


class Planning(_Section):
    """How the method for a model is chosen."""

    matrix_file: Path | None = None
    matrix_only: bool = False
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
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before credentials and file, which may not both give a value."""
        file = TomlConfigSettingsSource(settings_cls)
        given = credentials.read(_credentials_directory())
        twice = [key for key in credentials.given_twice(given, file()) if key not in _in(env_settings())]
        if twice:
            raise ConfigError(
                f"  {', '.join(twice)}: given here and as a credential of the service; expected one of them"
            )
        return init_settings, env_settings, InitSettingsSource(settings_cls, given), file


def load(path: Path | None = None) -> Settings:
    """Read the configuration.

    Args:
        path: the file; None means the default file if it exists, else defaults and environment alone.

    Raises:
        ConfigError: naming the file, every wrong key at once and, for a misspelt one, the nearest that exists.
    """
    file = path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    if file is not None and not file.is_file():
        raise ConfigError(f"{file}: no such file; see configs/ for examples")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile()
    except ValidationError as error:
        complaints = "\n".join(f"  {_complaint(item)}" for item in error.errors(include_url=False))
        raise ConfigError(f"{file or 'environment'}:\n{complaints}") from None
    except ConfigError as error:
        raise ConfigError(f"{file or 'environment'}:\n{error}") from None
    except credentials.UnknownCredentialError as error:
        raise ConfigError(f"{_credentials_directory()}:\n  {error}") from None
    except ValueError as error:  # TOMLDecodeError is one
        raise ConfigError(f"{file}: {error}") from None


def fixed_by_environment() -> frozenset[str]:
    """Return the keys, written ``section.key``, that the environment gives a value to."""
    return _in(EnvSettingsSource(Settings)())


def _in(given: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(f"{section}.{key}" for section, body in given.items() if isinstance(body, dict) for key in body)


def _credentials_directory() -> Path | None:
    named = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(named) if named else None


def _complaint(item: Any) -> str:
    keys = [str(part) for part in item["loc"]]
    where = ".".join(keys)
    if item["type"] == "value_error" and isinstance(item["input"], dict):  # a contradiction: the text names its keys
        return f"{where or 'settings'}: {item['ctx']['error']}"
    if item["type"] != "extra_forbidden":
        return f"{where}: {complaint(item)}, got {_shown(keys, item['input'])}"
    known = _known(keys[:-1])
    close = difflib.get_close_matches(keys[-1], known, n=1)
    return f"{where}: unknown key; {f'did you mean {close[0]}?' if close else 'known: ' + ', '.join(known)}"


def _shown(keys: list[str], value: Any) -> str:
    return "***" if any("password" in key or "token" in key for key in keys) else redacted(repr(value))[:80]


def _known(path: list[str]) -> list[str]:
    section: type[BaseModel] = Settings
    for key in path:
        kind = section.model_fields[key].annotation if key in section.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        section = kind
    return list(section.model_fields)
