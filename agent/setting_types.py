"""What settings are made of besides numbers: hosts, ports, labels, and paths in whose place nobody may put a secret."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from agent.contract.config import Whole

Label = Annotated[str, Field(min_length=1, max_length=64)]
Port = Annotated[Whole, Field(ge=0, le=65535)]


def _is_host(host: str) -> str:
    if not host or re.search(r"[\s/]", host):
        raise ValueError("Input should be a name or an address, without a scheme or spaces")
    return host


Host = Annotated[str, AfterValidator(_is_host)]


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


def _is_endpoint(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+[^\s?#@]*", url):
        raise ValueError("give an address such as https://host/path, without user, query and fragment")
    return url.rstrip("/")


Endpoint = Annotated[str, AfterValidator(_is_endpoint)]


def is_local(host: str) -> bool:
    """Return whether only programs on this machine reach what listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
