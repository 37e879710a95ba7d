"""One trusted key in a file: PEM as ``openssl pkey -pubout`` writes it, and the lines before it that limit it.

``not_after: 2027-01-01T00:00:00Z`` and ``models: kanji, digits-*`` are the limits, ``#`` begins a remark. Ed25519 keys
verify manifests, ECDSA keys on P-256, P-384 and P-521 verify bundles of OpenSSF Model Signing.
"""

from __future__ import annotations

import fnmatch
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

if TYPE_CHECKING:
    from pathlib import Path

_BEGIN = "-----BEGIN"
_LIMITS = ("not_after", "models")
_CURVE_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    SECP256R1.name: hashes.SHA256,
    SECP384R1.name: hashes.SHA384,
    SECP521R1.name: hashes.SHA512,
}
"""The digest that belongs to a curve (sigstore's algorithm registry, which OpenSSF Model Signing follows)."""


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
    public: Ed25519PublicKey | EllipticCurvePublicKey
    not_after: datetime | None
    models: tuple[str, ...]

    @property
    def is_for_bundles(self) -> bool:
        """Whether it verifies bundles of OpenSSF Model Signing; the others verify manifests."""
        return isinstance(self.public, EllipticCurvePublicKey)

    @property
    def pem_sha256(self) -> str:
        """The name that OpenSSF Model Signing gives to a key: the digest of its PEM."""
        return hashlib.sha256(self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Return whether ``signature`` over ``message`` was made with this key."""
        try:
            if isinstance(self.public, Ed25519PublicKey):
                self.public.verify(signature, message)
            else:
                self.public.verify(signature, message, ECDSA(_CURVE_HASHES[self.public.curve.name]()))
        except InvalidSignature:
            return False
        return True

    def objection(self, model: str, now: datetime | None) -> str | None:
        """Return why this key may not sign for ``model``, empty for what is for no single one, at ``now``, or None."""
        if now is not None and self.not_after is not None and now >= self.not_after:
            return f"key {self.id} is trusted until {self.not_after.isoformat()} only"
        if not any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models):
            return (
                f"key {self.id} may sign for {', '.join(self.models)}, not for {model or 'what is for no single model'}"
            )
        return None


def read_key(path: Path) -> TrustedKey:
    """Read one trusted key.

    Raises:
        KeyFileError: saying what is wrong with the file, and nothing of what is in it.
    """
    try:
        return parse_key(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: {error}") from None


def parse_key(path: Path, text: str) -> TrustedKey:
    """Return the key that a file ``path`` with ``text`` in it is.

    Raises:
        KeyFileError: as ``read_key`` does.
    """
    head, begin, rest = text.partition(_BEGIN)
    limits = _limits(path, head)
    if "PRIVATE KEY" in rest.partition("\n")[0]:
        raise KeyFileError(
            f"{path}: a private key, which belongs on no device; copy NAME.pub here, and make a new pair"
        )
    try:
        public = load_pem_public_key((begin + rest).encode())
        not_after = limits.get("not_after")
        expiry = datetime.fromisoformat(not_after.strip().replace("Z", "+00:00")) if not_after else None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: {error}") from None
    if not isinstance(public, (Ed25519PublicKey, EllipticCurvePublicKey)):
        raise KeyFileError(f"{path}: {type(public).__name__} instead of an Ed25519 or ECDSA public key")
    if isinstance(public, EllipticCurvePublicKey) and public.curve.name not in _CURVE_HASHES:
        raise KeyFileError(f"{path}: curve {public.curve.name}; known: {', '.join(_CURVE_HASHES)}")
    if expiry is not None and expiry.tzinfo is None:
        raise KeyFileError(f"{path}: not_after needs a time zone, such as a final Z")
    models = tuple(pattern.strip() for pattern in limits.get("models", "*").split(","))
    return TrustedKey(path.stem, public, expiry, models)


def _limits(path: Path, head: str) -> dict[str, str]:
    """Return the limits before the key; a misspelt one is an error, since it would lift the limit."""
    lines = [line.strip() for line in head.splitlines()]
    pairs = [line.partition(":") for line in lines if line and not line.startswith("#")]
    limits = {name.strip(): value.strip() for name, _, value in pairs}
    unknown = sorted(limits.keys() - _LIMITS)
    if unknown:
        raise KeyFileError(f"{path}: unknown limit {unknown[0][:80]!r}; known: {', '.join(_LIMITS)}, # for a remark")
    return limits
