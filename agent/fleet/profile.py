"""Profiles of ``nibblectl``: which broker, and how to log in, under a name in a TOML file.

The file is ``$XDG_CONFIG_HOME/nibbled/nibblectl.toml``, or the one that ``--profiles`` names::

    default = "site"                        # without --profile; without this line none

    [profiles.site]
    host = "broker.example.com"
    port = 8884
    ca_file = "ca.pem"                      # relative to this file
    username = "operator"
    password_file = "~/.config/nibbled/operator.password"

Keys are the options of ``nibblectl`` that stand before its command, with ``_`` for ``-``. An option that is given wins
over the environment (``NIBBLECTL_…``), that over the profile. No secret stands in the file itself: it names the files
that have them.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.contract import toml

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class ProfileError(Exception):
    """The file, or what a profile says, cannot be used; the text names the file and the next step."""


def default_file(environment: Mapping[str, str]) -> Path:
    """Return where profiles lie, by the XDG base directory specification."""
    folder = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME", "~"), ".config")  # noqa: PTH118
    return Path(folder).expanduser() / "nibbled" / "nibblectl.toml"


def names(file: Path) -> list[str]:
    """Return the names of the profiles in a file; none where it is missing.

    Raises:
        ProfileError: it is no TOML, or has no table of profiles.
    """
    return sorted(_profiles(_content(file), file))


def settings(file: Path, name: str | None, known: Mapping[str, bool]) -> dict[str, Any]:
    """Return what a profile sets, by option; paths are absolute.

    Args:
        file: of the profiles; it may be missing as long as no profile is named.
        name: of the profile, None for the default one of the file, if it has one.
        known: the options that a profile may set, and whether they name files.

    Raises:
        ProfileError: the file cannot be read, has no such profile, or the profile an unknown key or a value of the
            wrong kind.
    """
    content = _content(file)
    profiles = _profiles(content, file)
    wanted = name or content.get("default")
    if wanted is None:
        return {}
    if wanted not in profiles:
        there = ", ".join(sorted(profiles)) or f"none; write [profiles.{wanted}] into it"
        raise ProfileError(f"{file}: no profile {wanted!r}; there: {there}")
    profile = profiles[wanted]
    where = f"{file}: profile {wanted!r}"
    if not isinstance(profile, dict):
        raise ProfileError(f"{where} is no table, expected [profiles.{wanted}]")
    for key, value in profile.items():
        if key not in known:
            raise ProfileError(f"{where}: {_unknown(key, known)}")
        if not isinstance(value, str | int | float | bool | list):
            raise ProfileError(f"{where}: {key} is neither text, number, true or false, nor a list")
    return {key: _absolute(file, value) if known[key] else value for key, value in profile.items()}


def _content(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = toml.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ProfileError(f"{file}: {error.strerror or error}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise ProfileError(f"{file}: no TOML: {error}") from None
    return content


def _profiles(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    found = content.get("profiles", {})
    unknown = sorted(set(content) - {"default", "profiles"})
    if not isinstance(found, dict) or unknown:
        what = f"unknown: {', '.join(unknown)}; " if unknown else ""
        raise ProfileError(f"{file}: {what}expected default = NAME and tables [profiles.NAME]")
    return found


def _unknown(key: str, known: Collection[str]) -> str:
    if key == "password":
        return "a password does not stand here; write it into a file that only you may read: password_file"
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown: {key}; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}")


def _absolute(file: Path, value: Any) -> str | list[str]:
    if isinstance(value, list):
        return [str(_absolute(file, each)) for each in value]
    return str(file.absolute().parent / Path(str(value)).expanduser())
