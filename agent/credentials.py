"""Keys and passwords as systemd hands them to a service: files in ``$CREDENTIALS_DIRECTORY`` (``systemd.exec(5)``).

A credential is named after the setting that it stands for, without ``_file``: ``mqtt.key`` is ``mqtt.key_file``. A
bearer token is ``downloads.token.HOST``. Names of other sections belong to somebody else and are left alone; an unknown
name of these is refused, since a misspelt one would pass for a connection without a key.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NAMES = (
    "mqtt.password",
    "mqtt.ca",
    "mqtt.cert",
    "mqtt.key",
    "downloads.ca",
    "serving.cert",
    "serving.key",
    "serving.token",
    "serving.admin_token",
    "status.token",
)
TOKEN = "downloads.token."  # noqa: S105 - the head of a name
_SECTIONS = tuple({name.partition(".")[0] + "." for name in NAMES})


class UnknownCredentialError(ValueError):
    """A credential whose name is none of ours, in a section that is; the text says which exist."""


def read(directory: Path | None) -> dict[str, Any]:
    """Return the settings that the credentials in ``directory`` stand for, nested as in the file; paths, no contents.

    Raises:
        UnknownCredentialError: for a name that stands for nothing.
    """
    found: dict[str, Any] = {}
    for file in sorted(directory.iterdir()) if directory is not None and directory.is_dir() else ():
        name = file.name
        section, _, key = name.partition(".")
        if name in NAMES:
            found.setdefault(section, {})[f"{key}_file"] = str(file)
        elif name.startswith(TOKEN) and name != TOKEN:
            found.setdefault(section, {}).setdefault("token_files", {})[name.removeprefix(TOKEN)] = str(file)
        elif name.startswith(_SECTIONS):
            close = difflib.get_close_matches(name, NAMES, n=1)
            known = f"did you mean {close[0]}?" if close else f"known: {', '.join((*NAMES, f'{TOKEN}HOST'))}"
            raise UnknownCredentialError(f"credential {name}: unknown; {known}")
    return found


def given_twice(credentials: Mapping[str, Any], other: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield the keys, written ``section.key``, that both give a value to."""
    for key, value in credentials.items():
        own, where = other.get(key), f"{at}{key}"
        if isinstance(value, dict) and isinstance(own, dict):
            yield from given_twice(value, own, f"{where}.")
        elif own is not None:
            yield where
