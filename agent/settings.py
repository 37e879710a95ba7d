"""The configuration: a TOML file, overridden by the environment. The only reader of both.

``NIBBLED_DEVICE_ID`` overrides ``device_id``, ``NIBBLED_MQTT__HOST`` overrides ``host`` below ``[mqtt]``. A key that
does not exist is refused with the names that do, since a misspelt security setting must not pass for a default.
Lower floors receive values from here, never the settings object.
"""

from __future__ import annotations

import difflib
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from agent.contract.topics import Id

DEFAULT_FILE = Path("/etc/nibbled/nibbled.toml")
_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class ConfigError(Exception):
    """The configuration cannot be used; the text names file, keys and what was expected."""


def parse_size(value: Any) -> Any:
    """Turn ``"512MiB"`` into bytes; numbers pass.

    Raises:
        ValueError: for a text that is no size.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)?\s*", value)
    if match is None:
        raise ValueError(f"{value!r} is no size; write a number of bytes, or one with KiB, MiB or GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    groups: tuple[Id, ...] = ()

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
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    drain_s: Annotated[float, Field(ge=0, le=600)] = 10.0
    hold_s: Annotated[float, Field(ge=0, le=600)] = 30.0


class Status(_Section):
    """The agent's own port: status page, /metrics, /healthz."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 8002


class Downloads(_Section):
    """Where checkpoints may come from."""

    allowed_schemes: tuple[Literal["https", "http", "file"], ...] = ("https",)
    allowed_hosts: tuple[str, ...] = ()
    ca_file: Path | None = None
    stall_s: Annotated[float, Field(gt=0)] = 30.0


class Trust(_Section):
    """Who may deploy."""

    require_signature: bool = True
    keys_dir: Path = Path("/etc/nibbled/trust.d")


class Memory(_Section):
    """What a model may take."""

    reserve: Size = 512 * 2**20
    budget: Literal["auto"] | Size = "auto"


class Health(_Section):
    """Telemetry."""

    interval_s: Annotated[float, Field(ge=0.2, le=3600)] = 30.0


class Deployment(_Section):
    """The life of an operation."""

    soak_s: Annotated[float, Field(ge=0, le=86_400)] = 10.0
    build_threads: Annotated[int, Field(ge=1, le=256)] = 1


class Planning(_Section):
    """How the method for a model is chosen."""

    matrix_file: Path | None = None
    matrix_only: bool = False
    purpose: Literal["serve", "research"] = "serve"


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
    logging: Logging = Logging()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


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
    except ValueError as error:  # TOMLDecodeError is one
        raise ConfigError(f"{file}: {error}") from None


def _complaint(item: Any) -> str:
    keys = [str(part) for part in item["loc"]]
    where = ".".join(keys)
    if item["type"] != "extra_forbidden":
        return f"{where}: {item['msg']}, got {_shown(keys, item['input'])}"
    known = _known(keys[:-1])
    close = difflib.get_close_matches(keys[-1], known, n=1)
    return f"{where}: unknown key; {f'did you mean {close[0]}?' if close else 'known: ' + ', '.join(known)}"


def _shown(keys: list[str], value: Any) -> str:
    return "***" if any("password" in key for key in keys) else repr(value)[:80]


def _known(path: list[str]) -> list[str]:
    section: type[BaseModel] = Settings
    for key in path:
        kind = section.model_fields[key].annotation if key in section.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        section = kind
    return list(section.model_fields)
