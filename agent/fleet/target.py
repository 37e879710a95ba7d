"""Whom ``nibblectl`` talks to, and the connection: what every command that needs the broker begins with.

A command takes the target from click and opens the connection; what goes wrong ends the program with its sentence::

    @click.command()
    @click.pass_obj
    def waves(target: Target) -> None:
        with target.connection() as messages:                  # a Messages: publish, listen, hear
            client = client_of(target, messages)                # a FleetClient, of agent.fleet.sending; it signs
            operation = client.send("rollback", model="kanji")

Host, port, login, TLS and transport come from the options before the command, else from ``NIBBLECTL_…`` in the
environment, else from the profile (``agent.fleet.profile``); ``target`` has what came of it.
"""

from __future__ import annotations

import contextlib
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from agent import exits
from agent.adapters.mqtt_operator import BrokerError, Messages, TlsFilesError
from agent.adapters.tls import TlsFiles
from agent.contract.topics import Topics
from agent.fleet.client import NoAnswerError
from agent.fleet.shapes import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator

UNREACHABLE = exits.NO_ANSWER
SECURE_PORT = 8883
"""IANA's secure-mqtt."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Which device, on which broker, and how to talk to people.

    Attributes:
        host, port, transport, ws_path: where the broker is; ``transport`` is ``tcp`` or ``websockets``.
        username, password, password_file: how to log in.
        tls, ca_file, cert_file, key_file: whether to encrypt, and by what.
        prefix: of every topic.
        device: the one that is meant, None when none was named.
        url: where devices answer inference, with ``{device}`` for the name; None where nobody said.
        token_file: has the bearer token for that.
        sign_keys: private keys that sign each command; without any commands are not signed.
        expires_in_s: how long a signed command may be begun, 0 for ever.
        as_json: print JSON, one object per line, and nothing else on stdout.
        wait_s: seconds of silence after which to give up; 0 does not wait at all.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    transport: str = "tcp"
    ws_path: str = "/mqtt"
    username: str | None = None
    password: str | None = None
    password_file: str | None = None
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    prefix: str = "edge/v1"
    device: str | None = None
    url: str | None = None
    token_file: str | None = None
    sign_keys: tuple[Path, ...] = ()
    expires_in_s: float = 86_400.0
    as_json: bool = False
    wait_s: float = 600.0

    @property
    def tls_files(self) -> TlsFiles | None:
        """What encrypts the connection; None without. A port or a certificate asks for it, as on a device."""
        files = TlsFiles(self.ca_file, self.cert_file, self.key_file)
        return files if self.tls or self.port == SECURE_PORT or files != TlsFiles() else None

    def messages(self, client_id: str = "") -> Messages:
        """Return the way to the broker, not open yet.

        Args:
            client_id: by which the broker is to know the connection; by default it makes one up.

        Raises:
            BrokerError: the files for TLS cannot be used, or nobody listens.
        """
        return Messages(
            self.host,
            self.port,
            username=self.username,
            password=self.password if self.password is not None else _secret("password file", self.password_file),
            tls=self.tls_files,
            ws_path=self.ws_path if self.transport == "websockets" else None,
            client_id=client_id,
        )

    @contextlib.contextmanager
    def connection(self) -> Iterator[Messages]:
        """Hold the connection while the block runs.

        Ends the program with status 4 where broker or device do not answer, or with what cannot be read, and with 2
        where the files for TLS are no use.
        """
        try:
            with self.messages() as messages:
                yield messages
        except TlsFilesError as error:
            fail(f"{error}\n  are --ca-file, --cert-file and --key-file PEM files that belong together?", 2)
        except BrokerError as error:
            hint = "check --host and --port, --username and NIBBLECTL_PASSWORD, and the certificates; nibblectl doctor"
            fail(f"{error}\n  {hint}", UNREACHABLE)
        except (NoAnswerError, UnreadableError) as error:
            fail(str(error), UNREACHABLE)

    def topics(self, device: str | None = None) -> Topics:
        """Return the topics of a device, by default the one that was named; ends the program with status 2 without."""
        device = device or self.device
        if device is None:
            fail("which device? give --device, or set NIBBLECTL_DEVICE", 2)
        try:
            return Topics(self.prefix, device)
        except ValueError as error:
            fail(str(error), 2)

    @property
    def has_password(self) -> bool:
        """Whether a password is sent."""
        return self.password is not None or self.password_file is not None

    def inference_url(self) -> str:
        """Return where the device answers inference; ends the program with status 2 where nobody said."""
        if self.url is None:
            fail("where does it answer? give --url, such as http://{device}:8000, or url in the profile", 2)
        return self.url.replace("{device}", self.topics().device) if "{device}" in self.url else self.url

    def token(self) -> str | None:
        """Return the bearer token for inference, None without one."""
        return _secret("token file", self.token_file)


def _secret(what: str, name: str | None) -> str | None:
    """Return what is in a file, None without one.

    Nothing is sent of a file that others may read: it ends the program.
    """
    if name is None:
        return None
    file = Path(name)
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{what} {file}: {getattr(error, 'strerror', None) or error}", 2)
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        fail(f"{what} {file}: its mode is {mode:04o}, others may not read it\n  chmod 600 {file}", 2)
    return text.rstrip("\r\n")


def fail(text: str, status: int) -> NoReturn:
    """End with a sentence on stderr."""
    click.echo(f"nibblectl: {text}", err=True)
    sys.exit(status)
