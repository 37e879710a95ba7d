"""Signing keys and manifests, as the operator makes them. Formats are the ones that stock OpenSSL reads and writes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from agent.contract.manifest import PAYLOAD_TYPE, Manifest, pae

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNK = 4 * 2**20


class SigningKeyError(Exception):
    """A key file cannot be used."""


def generate(directory: Path, name: str) -> tuple[Path, Path]:
    """Make an Ed25519 key pair ``name.key`` (owner only) and ``name.pub``; an existing pair is never overwritten.

    Raises:
        FileExistsError: when one of the two is there already.
    """
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    if public.exists():
        raise FileExistsError(public)
    key = Ed25519PrivateKey.generate()
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def describe_file(path: Path, url: str) -> dict[str, Any]:
    """Return the manifest's entry for the file at ``path`` that devices will fetch from ``url``."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return {"name": path.name, "url": url, "sha256": digest.hexdigest(), "size": path.stat().st_size}


def sign(manifest: Mapping[str, Any], private_key: Path) -> dict[str, Any]:
    """Return ``manifest`` in a DSSE envelope signed with the key in ``private_key``; its id is the file's name.

    Raises:
        pydantic.ValidationError: when the manifest is not one that a device would accept.
        SigningKeyError: when the key is not an Ed25519 private key.
    """
    Manifest.model_validate(manifest)
    key = load_pem_private_key(private_key.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{private_key}: {type(key).__name__} instead of an Ed25519 private key")
    body = json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()
    signature = base64.b64encode(key.sign(pae(PAYLOAD_TYPE, body))).decode()
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(body).decode(),
        "signatures": [{"keyid": Path(private_key).stem, "sig": signature}],
    }
