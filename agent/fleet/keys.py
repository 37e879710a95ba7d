"""Signing keys and manifests, as the operator makes them. Formats are the ones that stock OpenSSL reads and writes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from agent.adapters.trusted_keys import KeyFileError, parse_key
from agent.contract.manifest import PAYLOAD_TYPE, Manifest, pae
from agent.contract.topics import ID_PATTERN, is_id
from agent.contract.wire import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

CHUNK = 4 * 2**20


class SigningKeyError(Exception):
    """A key file cannot be used."""


def generate(
    directory: Path, name: str, limits: Mapping[str, str | None] | None = None, now: datetime | None = None
) -> tuple[Path, Path]:
    """Make an Ed25519 key pair ``name.key`` (owner only) and ``name.pub``; an existing pair is never overwritten.

    Args:
        directory: where to.
        name: the key's id.
        limits: ``not_after`` and ``models`` as they are to stand in ``name.pub``.
        now: wall time, for which ``not_after`` has to be ahead; None to let it be.

    Raises:
        FileExistsError: when one of the two is there already.
        KeyFileError: the name is no id, or a limit is none or past; no file is left behind.
    """
    if not is_id(name):
        raise KeyFileError(f"key name {name!r} must match {ID_PATTERN}: it is the key's id, and names two files here")
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    if public.exists():
        raise FileExistsError(public)
    key = Ed25519PrivateKey.generate()
    head = "".join(f"{limit}: {value}\n" for limit, value in (limits or {}).items() if value)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    end = parse_key(public, head + pem.decode()).not_after
    if now is not None and end is not None and end <= now:
        raise KeyFileError(f"not_after {rfc3339(end)} is past, it is {rfc3339(now)} by this machine's clock")
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_text(head + pem.decode(), encoding="utf-8")
    return private, public


def describe_file(path: Path, url: str) -> dict[str, Any]:
    """Return the manifest's entry for the file at ``path`` that devices will fetch from ``url``."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return {"name": path.name, "url": url, "sha256": digest.hexdigest(), "size": path.stat().st_size}


def sign(manifest: Mapping[str, Any], *private_keys: Path) -> dict[str, Any]:
    """Return ``manifest`` in a DSSE envelope signed with each key; the file's name is the key's id.

    Two keys make one manifest good for devices that trust the old one and for those that trust the new one.

    Raises:
        pydantic.ValidationError: when the manifest is not one that a device would accept.
        SigningKeyError: when a key is not an Ed25519 private key, or none is given.
    """
    if not private_keys:
        raise SigningKeyError("no key to sign with")
    Manifest.model_validate(manifest)
    body = json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()
    message = pae(PAYLOAD_TYPE, body)
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(body).decode(),
        "signatures": [
            {"keyid": path.stem, "sig": base64.b64encode(_private(path).sign(message)).decode()}
            for path in private_keys
        ],
    }


def _private(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(f"{path}: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{path}: {type(key).__name__} instead of an Ed25519 private key")
    return key
