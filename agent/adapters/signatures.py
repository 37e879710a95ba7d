"""Trusted keys and the signatures they made: Ed25519 over DSSE, with the ``cryptography`` package.

A trusted key is a file ``<key id>.pub`` in the keys directory: a PEM public key as ``openssl pkey -pubout`` writes
it. Lines before it may limit it: ``not_after: 2027-01-01T00:00:00Z`` and ``models: kanji, digits-*``. Two files are
two keys, which makes a rotation. The directory is read at every check, so a new key needs no restart.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import decode_base64, pae

if TYPE_CHECKING:
    from pathlib import Path

    from agent.contract.manifest import Envelope

_BEGIN = "-----BEGIN"
_LIMITS = ("not_after", "models")


class KeyFileError(ValueError):
    """A file in the keys directory is not a key that can be trusted."""


@dataclass(frozen=True)
class TrustedKey:
    """A key and what it may sign.

    Attributes:
        id: the file's name without ``.pub``.
        public: the key itself.
        not_after: when it stops to be trusted, or None.
        models: patterns of the model names that it may sign for.
    """

    id: str
    public: Ed25519PublicKey
    not_after: datetime | None
    models: tuple[str, ...]

    def objection(self, model: str, now: datetime | None) -> str | None:
        """Return why this key may not sign for ``model`` at ``now``, or None."""
        if now is not None and self.not_after is not None and now >= self.not_after:
            return f"key {self.id} is trusted until {self.not_after.isoformat()} only"
        if not any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models):
            return f"key {self.id} may sign for {', '.join(self.models)}, not for {model}"
        return None


def read_key(path: Path) -> TrustedKey:
    """Read one trusted key.

    Raises:
        KeyFileError: saying what is wrong with the file.
    """
    head, begin, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    limits = _limits(path, head)
    try:
        public = load_pem_public_key((begin + rest).encode())
        not_after = limits.get("not_after")
        expiry = datetime.fromisoformat(not_after.strip().replace("Z", "+00:00")) if not_after else None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: {error}") from None
    if not isinstance(public, Ed25519PublicKey):
        raise KeyFileError(f"{path}: {type(public).__name__} instead of an Ed25519 public key")
    if expiry is not None and expiry.tzinfo is None:
        raise KeyFileError(f"{path}: not_after needs a time zone, such as a final Z")
    models = tuple(pattern.strip() for pattern in limits.get("models", "*").split(","))
    return TrustedKey(path.stem, public, expiry, models)


class KeyDirectory:
    """The trusted keys of this device."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keys(self) -> list[TrustedKey]:
        """Return every usable key; a broken file is skipped here and named by ``problems``."""
        return [key for key in map(_try_read, self._files()) if isinstance(key, TrustedKey)]

    def problems(self) -> list[str]:
        """Return what is wrong with files in the directory, one sentence each."""
        return [str(key) for key in map(_try_read, self._files()) if isinstance(key, KeyFileError)]

    def verify(self, envelope: Envelope, model: str, now: datetime | None) -> str:
        """Return the id of a trusted key that signed ``envelope`` and may sign for ``model``.

        A ``keyid`` in the envelope is a hint (DSSE): without a match every key is tried.

        Raises:
            RefusalError: ``untrusted_key`` when no trusted key is in question, ``bad_signature`` when one is but the
                signature is not its.
        """
        keys = self.keys()
        message = pae(envelope.payloadType, envelope.body())
        objections: list[str] = []
        named = False
        for signature in envelope.signatures:
            matching = [key for key in keys if key.id == signature.keyid]
            named = named or bool(matching)
            for key in matching or keys:
                if not _is_signed(key.public, decode_base64(signature.sig, "manifest.signatures.sig"), message):
                    continue
                objection = key.objection(model, now)
                if objection is None:
                    return key.id
                objections.append(objection)
        raise self._refusal(envelope, keys, objections, named=named)

    def _refusal(
        self, envelope: Envelope, keys: list[TrustedKey], objections: list[str], *, named: bool
    ) -> RefusalError:
        if objections:
            return RefusalError(ErrorCode.UNTRUSTED_KEY, "; ".join(objections))
        if named:
            return RefusalError(
                ErrorCode.BAD_SIGNATURE,
                "no signature matches the manifest and the trusted key of its keyid",
                f"was it signed with the private half of {self._directory}/<keyid>.pub, and not changed since?",
            )
        signers = ", ".join(signature.keyid or "unnamed" for signature in envelope.signatures)
        trusted = ", ".join(key.id for key in keys) or "none"
        return RefusalError(
            ErrorCode.UNTRUSTED_KEY,
            f"signed by {signers}; trusted here: {trusted}",
            f"nibblectl keygen NAME on your machine, then copy NAME.pub to {self._directory}",
        )

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob("*.pub")) if self._directory.is_dir() else []


def _limits(path: Path, head: str) -> dict[str, str]:
    """Return the limits before the key; a misspelt one is an error, since it would lift the limit."""
    lines = [line.strip() for line in head.splitlines()]
    pairs = [line.partition(":") for line in lines if line and not line.startswith("#")]
    limits = {name.strip(): value.strip() for name, _, value in pairs}
    unknown = sorted(limits.keys() - _LIMITS)
    if unknown:
        raise KeyFileError(f"{path}: unknown limit {unknown[0][:80]!r}; known: {', '.join(_LIMITS)}, # for a remark")
    return limits


def _try_read(path: Path) -> TrustedKey | KeyFileError:
    try:
        return read_key(path)
    except KeyFileError as error:
        return error
    except (OSError, UnicodeDecodeError) as error:
        return KeyFileError(f"{path}: {error}")


def _is_signed(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
