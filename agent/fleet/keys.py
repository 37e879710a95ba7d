"""Signing keys and what they sign, as the operator makes it. Formats are those that stock OpenSSL reads and writes."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
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
from agent.contract import signed
from agent.contract.manifest import PAYLOAD_TYPE, Manifest, pae
from agent.contract.topics import ID_PATTERN, is_id
from agent.contract.wire import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

CHUNK = 4 * 2**20
_PUBLIC = re.compile(rb"^-----BEGIN (?:[A-Z0-9]+ )*PUBLIC KEY-----", re.MULTILINE)
_SET = re.compile(r"\[!?\]?[^\]]*\]")
"""One character out of several, as in ``digits-[0-9]``."""
_PATTERN = re.compile(r"[A-Za-z0-9_*?-]{1,64}")


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
        KeyFileError: the name is no id, or a limit is none, past, or of models that cannot be; no file is left behind.
    """
    if not is_id(name):
        raise KeyFileError(f"key name {name!r} must match {ID_PATTERN}: it is the key's id, and names two files here")
    _check_models((limits or {}).get("models"))
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    if public.exists():
        raise FileExistsError(errno.EEXIST, "exists", str(public))
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


def _check_models(models: str | None) -> None:
    """Refuse patterns that fit no model's name: whoever wrote them meant others, and would sign in vain."""
    for pattern in (each.strip() for each in (models or "*").split(",")):
        if not _PATTERN.fullmatch(_SET.sub("x", pattern)):
            raise KeyFileError(
                f"models: {pattern!r} is no name that a model can have, which matches {ID_PATTERN}, nor a pattern of "
                "such names, as digits-*; commas stand between them"
            )


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
        SigningKeyError: when a key cannot be read or is not an Ed25519 private key, or none is given.
    """
    Manifest.model_validate(manifest)
    return _envelope(PAYLOAD_TYPE, manifest, private_keys)


def sign_message(
    recipient: Mapping[str, str], name: str, body: Mapping[str, Any], *private_keys: Path
) -> dict[str, Any]:
    """Return ``body`` with the ``signature`` that makes it good for one device, or for the wanted state of a group.

    Args:
        recipient: ``{"device": ID}`` or ``{"group": NAME}``.
        name: of the command, or ``desired``.
        body: what is to be sent.
        private_keys: one of each that devices may trust.

    Raises:
        SigningKeyError: when a key cannot be read or is not an Ed25519 private key, or none is given.
    """
    said = signed.statement(recipient, name, body)
    return {**body, signed.FIELD: _envelope(signed.PAYLOAD_TYPE, said, private_keys)}


def _envelope(payload_type: str, said: Mapping[str, Any], private_keys: Sequence[Path]) -> dict[str, Any]:
    if not private_keys:
        raise SigningKeyError("no key to sign with")
    body = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    message = pae(payload_type, body)
    return {
        "payloadType": payload_type,
        "payload": base64.b64encode(body).decode(),
        "signatures": [
            {"keyid": path.stem, "sig": base64.b64encode(_private(path).sign(message)).decode()}
            for path in private_keys
        ],
    }


def _private(path: Path) -> Ed25519PrivateKey:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SigningKeyError(f"{path}: {error.strerror or error}") from None
    if _PUBLIC.search(content):
        raise SigningKeyError(
            f"{path}: a public key, which signs nothing; give the private one, which keygen wrote beside it: "
            f"{path.with_suffix('.key')}"
        )
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(f"{path}: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{path}: {type(key).__name__} instead of an Ed25519 private key")
    return key
