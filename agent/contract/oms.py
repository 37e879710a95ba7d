"""Bundles of OpenSSF Model Signing v1.0: what such a bundle says, not whether its signature holds.

A bundle is sigstore's JSON with a DSSE envelope; the payload is an in-toto statement that lists a digest for every
file of a model (github.com/sigstore/model-transparency). It names no device, no sequence and no expiry: it tells who
made the files, not that they should be served here. Bundles made with a key are read; those of sigstore's keyless
signing need a log that a device cannot reach.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import Envelope, Sha256
from agent.contract.wire import MAX_PAYLOAD_BYTES, describe, parse_object

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_FILE_BYTES = 16 * 2**20
"""Bytes of a bundle that is read from a file; one in a command is bounded by the command."""
_ONE_FILE = "."
"""The name that a bundle gives to a model which is a single file."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Digest(_Frozen):
    sha256: Sha256


class _Subject(_Frozen):
    name: str
    digest: _Digest


class _Resource(_Frozen):
    name: Annotated[str, Field(min_length=1, max_length=1024)]
    algorithm: Literal["sha256"]
    digest: Sha256


class _Serialization(_Frozen):
    method: Literal["files"]
    ignore_paths: tuple[str, ...] = ()


class _Predicate(_Frozen):
    resources: Annotated[tuple[_Resource, ...], Field(min_length=1)]
    serialization: _Serialization


class _Statement(_Frozen):
    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[tuple[_Subject, ...], Field(min_length=1, max_length=1)]
    predicateType: Literal["https://model_signing/signature/v1.0"]  # noqa: N815 - in-toto's own spelling
    predicate: _Predicate


@dataclass(frozen=True)
class SignedModel:
    """What a bundle vouches for.

    Attributes:
        name: of the directory or file that was signed.
        files: SHA-256 by path, ``/`` between folders; one file alone is called by ``name``.
        ignored: paths that the signer left out.
    """

    name: str
    files: dict[str, str]
    ignored: tuple[str, ...]

    def require(self, digests: dict[str, str]) -> None:
        """Check that every file of a release is one of those that were signed, by its digest.

        Args:
            digests: SHA-256 by the release's own name for the file.

        Raises:
            RefusalError: ``checksum_mismatch`` naming the first that is not.
        """
        for name, digest in digests.items():
            if digest not in self.files.values():
                raise RefusalError(
                    ErrorCode.CHECKSUM_MISMATCH,
                    f"{name} with sha256 {digest} is none of the {len(self.files)} files in the bundle for {self.name}",
                    "sign the very file that is deployed: model_signing sign key FILE",
                )


class _PublicKey(_Frozen):
    hint: str | None = None


class _Material(_Frozen):
    publicKey: _PublicKey  # noqa: N815 - sigstore's own spelling


class Bundle(_Frozen):
    """A bundle as it stands in a file, or in a command under ``oms``."""

    verificationMaterial: _Material  # noqa: N815 - as above
    dsseEnvelope: Envelope  # noqa: N815 - as above

    @property
    def key_hint(self) -> str | None:
        """SHA-256 of the public key's PEM, by which the signer says who signed; nothing is decided by it."""
        return self.verificationMaterial.publicKey.hint

    def signed_model(self, most_bytes: int = MAX_PAYLOAD_BYTES) -> SignedModel:
        """Parse the statement. It must not be acted on before the signature is verified.

        Raises:
            RefusalError: ``bad_request`` with what is wrong and where.
        """
        envelope = self.dsseEnvelope
        if envelope.payloadType != PAYLOAD_TYPE:
            raise _bad(f"payloadType {envelope.payloadType!r} is not {PAYLOAD_TYPE}")
        try:
            statement = _Statement.model_validate(parse_object(envelope.body(), most_bytes))
        except ValidationError as error:
            raise _bad(describe(error)) from None
        resources, subject = statement.predicate.resources, statement.subject[0]
        root = hashlib.sha256(b"".join(bytes.fromhex(each.digest) for each in resources)).hexdigest()
        if root != subject.digest.sha256:
            raise _bad(f"its files hash to {root}, its subject says {subject.digest.sha256}")
        names = [subject.name if each.name == _ONE_FILE else each.name for each in resources]
        if len(set(names)) != len(names):
            raise _bad("a file is listed twice")
        escaping = [name for name in names if name.startswith("/") or ".." in name.split("/")]
        if escaping:
            raise _bad(f"{escaping[0][:80]!r} points outside of the model")
        files = {name: each.digest for name, each in zip(names, resources, strict=True)}
        return SignedModel(subject.name, files, statement.predicate.serialization.ignore_paths)


def read_bundle(content: bytes) -> Bundle:
    """Parse a bundle's file.

    Raises:
        RefusalError: ``bad_request`` with what is wrong and where.
    """
    body: Any = parse_object(content, MAX_FILE_BYTES)
    try:
        return Bundle.model_validate(body)
    except ValidationError as error:
        raise _bad(describe(error)) from None


def _bad(detail: str) -> RefusalError:
    return RefusalError(ErrorCode.BAD_REQUEST, f"bundle: {detail}", "sign again with model_signing 1.0 or later")
