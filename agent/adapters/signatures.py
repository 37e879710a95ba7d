"""The trusted keys of a device and the signatures they made, with the ``cryptography`` package alone.

A trusted key is a file ``<key id>.pub`` in the keys directory; `agent.adapters.trusted_keys` says what is in it. Two
files are two keys, which makes a rotation. The directory is read at every check: a new key needs no restart, and one
that was removed is trusted no longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.adapters.trusted_keys import KeyFileError, TrustedKey, read_key
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import Signer, decode_base64, pae
from agent.contract.topics import is_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from pathlib import Path

    from agent.contract.manifest import Envelope
    from agent.contract.oms import Bundle


class KeyDirectory:
    """The trusted keys of this device.

    Args:
        directory: holds ``*.pub``; one that does not exist trusts nobody.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keys(self) -> list[TrustedKey]:
        """Return every usable key; a broken file is skipped here and named by ``problems``."""
        return [key for key in map(_try_read, self._files()) if isinstance(key, TrustedKey)]

    def problems(self) -> list[str]:
        """Return what is wrong with files in the directory, one sentence each."""
        return [str(key) for key in map(_try_read, self._files()) if isinstance(key, KeyFileError)]

    def verify(self, envelope: Envelope, model: str, now: datetime | None) -> Signer:
        """Return the trusted key that signed ``envelope`` and may sign for ``model``; an empty one is no model's.

        Raises:
            RefusalError: ``untrusted_key`` when no trusted key is in question, ``bad_signature`` when one is but the
                signature is not its.
        """
        keys = [key for key in self.keys() if not key.is_for_bundles]
        return verify(envelope, keys, model, now, str(self._directory))

    def verify_bundle(self, bundle: Bundle, model: str, now: datetime | None) -> Signer:
        """Return the trusted ECDSA key that signed ``bundle`` and may sign for ``model``.

        Raises:
            RefusalError: as ``verify`` does.
        """
        keys = [key for key in self.keys() if key.is_for_bundles]
        return verify_bundle(bundle, keys, model, now, str(self._directory))

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob("*.pub")) if self._directory.is_dir() else []


def verify_bundle(bundle: Bundle, keys: Iterable[TrustedKey], model: str, now: datetime | None, where: str) -> Signer:
    """Return which of ``keys`` signed ``bundle``; as ``verify``, where the bundle's hint stands for a keyid."""
    known = list(keys)
    hinted = any(key.pem_sha256 == bundle.key_hint for key in known)
    return verify(bundle.dsseEnvelope, known, model, now, where, is_named=hinted)


def verify(
    envelope: Envelope,
    keys: Iterable[TrustedKey],
    model: str,
    now: datetime | None,
    where: str,
    *,
    is_named: bool = False,
) -> Signer:
    """Return which of ``keys`` signed ``envelope`` and may sign for ``model``.

    A ``keyid`` in the envelope is a hint (DSSE): without a match every key is tried. One good signature is enough,
    so that a manifest may carry those of the old and of the new key while keys are rotated.

    Args:
        envelope: what was signed.
        keys: those that are trusted for its kind.
        model: that it is for; empty for what is for the device, which only an unlimited key may sign.
        now: wall time, or None when the clock is not synchronised: then no date of a key is judged.
        where: the keys lie, for the hint.
        is_named: whether the signer is known to claim one of the keys.

    Raises:
        RefusalError: ``untrusted_key`` or ``bad_signature``.
    """
    known = list(keys)
    message = pae(envelope.payloadType, envelope.body())
    objections: list[str] = []
    for signature in envelope.signatures:
        matching = [key for key in known if key.id == signature.keyid]
        is_named = is_named or bool(matching)
        for key in matching or known:
            if not key.has_signed(message, decode_base64(signature.sig, "signatures.sig")):
                continue
            objection = key.objection(model, now)
            if objection is None:
                return Signer(key.id, key.not_after)
            objections.append(objection)
    if objections:
        raise RefusalError(
            ErrorCode.UNTRUSTED_KEY,
            "; ".join(objections),
            f"sign with a key that may, or change the lines before the key in its file in {where}",
        )
    if is_named:
        raise RefusalError(
            ErrorCode.BAD_SIGNATURE,
            "no signature matches what was signed and the trusted key of its keyid",
            f"was it signed with the private half of {where}/<keyid>.pub, and not changed since?",
        )
    signers = ", ".join(signature.keyid or "unnamed" for signature in envelope.signatures)
    trusted = ", ".join(key.id for key in known) or "none"
    raise RefusalError(
        ErrorCode.UNTRUSTED_KEY, f"signed by {signers}; trusted here: {trusted}", _way_out(envelope, known, where)
    )


def _way_out(envelope: Envelope, known: Sequence[TrustedKey], where: str) -> str:
    """Return what makes a stranger's envelope, or one like it, trusted."""
    strangers = [f"{signature.keyid}.pub" for signature in envelope.signatures if is_id(signature.keyid)]
    install = f"if whoever signed it is to be trusted, copy {' or '.join(strangers) or 'their .pub'} to {where}"
    if known:
        return f"sign with a key that is trusted here; or, {install}"
    return f"{install}; a key of your own: nibblectl keygen NAME, then copy NAME.pub to {where} and sign with NAME.key"


def _try_read(path: Path) -> TrustedKey | KeyFileError:
    try:
        return read_key(path)
    except KeyFileError as error:
        return error
