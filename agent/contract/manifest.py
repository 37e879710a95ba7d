"""The signed manifest that names a model's files, and the DSSE envelope that carries it.

Pure parsing and rules; the signature itself is checked by an adapter. The envelope follows DSSE 1.0
(github.com/secure-systems-lab/dsse, protocol.md): the signature covers ``PAE(payloadType, payload)``, so no canonical
JSON is needed. The order of checks is the contract's: schema, expiry, sequence, audience, then the signature.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - pydantic resolves it at run time
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.topics import Id
from agent.contract.wire import Moment, describe, parse_object, rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

PAYLOAD_TYPE = "application/vnd.nibbled.manifest+json"
MAX_FILES = 64
MAX_NAMES = 5
"""Of an audience, that a refusal tells."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ManifestFile(_Frozen):
    """One file of a model."""

    name: FileName
    url: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    sha256: Sha256
    size: Annotated[int, Field(gt=0)]


class Audience(_Frozen):
    """Who a manifest is meant for; an empty audience means every device."""

    devices: tuple[Id, ...] = ()
    groups: tuple[Id, ...] = ()
    hardware: tuple[str, ...] = ()

    def words(self) -> str:
        """Return whom it names, for people; of many only the first."""
        kinds = {"device": self.devices, "group": self.groups, "hardware": self.hardware}
        return ", ".join(f"{kind} {_listed(names)}" for kind, names in kinds.items() if names) or "every device"

    def includes(self, identity: Identity) -> bool:
        """Return whether ``identity`` is named here, by device id, group or hardware."""
        if not (self.devices or self.groups or self.hardware):
            return True
        return (
            identity.device in self.devices
            or not identity.groups.isdisjoint(self.groups)
            or identity.hardware in self.hardware
        )


@dataclass(frozen=True)
class Identity:
    """Who this device is, as a manifest's audience names it."""

    device: str
    groups: frozenset[str] = frozenset()
    hardware: str | None = None

    def words(self) -> str:
        """Return who it is, for people."""
        groups = f"in group {_listed(sorted(self.groups))}" if self.groups else "in no group"
        return f"device {self.device}, {groups}, hardware {self.hardware or 'unknown'}"


@dataclass(frozen=True)
class Signer:
    """The trusted key behind a signature, and until when it is trusted (None: for good)."""

    key_id: str
    not_after: datetime | None = None


class Manifest(_Frozen):
    """What is to be served and where it lies; signed as a whole."""

    model: Id
    version: Version
    sequence: Annotated[int, Field(ge=0, lt=2**53)]
    files: Annotated[tuple[ManifestFile, ...], Field(min_length=1, max_length=MAX_FILES)]
    audience: Audience = Audience()
    model_type: Annotated[str, StringConstraints(min_length=1, max_length=64)] = "auto"
    source_dtype: str | None = None
    not_before: Moment | None = None
    expires: Moment | None = None
    allow_downgrade: bool = False

    @property
    def dates(self) -> dict[str, datetime]:
        """The dates that limit it, by their names."""
        found = {"not_before": self.not_before, "expires": self.expires}
        return {name: date for name, date in found.items() if date is not None}

    def check(self, identity: Identity, *, now: datetime | None, highest_sequence: int | None) -> None:
        """Check expiry, sequence and audience.

        Args:
            identity: this device.
            now: wall time, or None when the clock is not synchronised: then dates cannot be judged here.
            highest_sequence: the highest sequence that this device accepted for the model, if any.

        Raises:
            RefusalError: ``expired``, ``not_yet_valid``, ``stale_sequence`` or ``wrong_audience``.
        """
        if now is not None and self.expires is not None and now >= self.expires:
            raise RefusalError(
                ErrorCode.EXPIRED,
                f"the manifest expired at {rfc3339(self.expires)}, the clock here says {rfc3339(now)}",
                "sign a fresh one with a later --expires, or set the clock if it is wrong",
            )
        if now is not None and self.not_before is not None and now < self.not_before:
            raise RefusalError(
                ErrorCode.NOT_YET_VALID,
                f"the manifest is valid from {rfc3339(self.not_before)}, the clock here says {rfc3339(now)}",
                "send it again then, or set the clock if it is wrong",
            )
        if highest_sequence is not None and self.sequence < highest_sequence and not self.allow_downgrade:
            raise RefusalError(
                ErrorCode.STALE_SEQUENCE,
                f"sequence {self.sequence} of {self.model} is older than {highest_sequence}, which was accepted here, "
                "whatever became of it",
                "sign with a higher sequence, or with allow_downgrade inside the manifest",
            )
        if not self.audience.includes(identity):
            raise RefusalError(
                ErrorCode.WRONG_AUDIENCE,
                f"the manifest is for {self.audience.words()}; this is {identity.words()}",
                "send it to a device that it names, or sign one whose audience names this one by id, group or hardware",
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{' or '.join(names[:MAX_NAMES])}{more}"


class Signature(_Frozen):
    """One signature of an envelope; ``keyid`` is a hint that nothing is decided by."""

    keyid: str = ""
    sig: str


class Envelope(_Frozen):
    """A DSSE envelope, base64 inside JSON."""

    payloadType: str  # noqa: N815 - DSSE's own spelling
    payload: str
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=8)]

    def body(self, what: str = "manifest.payload") -> bytes:
        """Return the signed bytes; ``what`` they are is for the error.

        Raises:
            RefusalError: ``bad_request`` when they are not base64.
        """
        return decode_base64(self.payload, what)

    def manifest(self) -> Manifest:
        """Parse the payload. It must not be acted on before the signature is verified.

        Raises:
            RefusalError: ``bad_request`` with what is wrong and where.
        """
        if self.payloadType != PAYLOAD_TYPE:
            raise RefusalError(
                ErrorCode.BAD_REQUEST, f"payloadType {self.payloadType!r} is not {PAYLOAD_TYPE}", "sign with nibblectl"
            )
        try:
            return Manifest.model_validate(parse_object(self.body()))
        except ValidationError as error:
            raise RefusalError(ErrorCode.BAD_REQUEST, f"manifest: {describe(error)}") from None


def decode_base64(text: str, what: str) -> bytes:
    """Decode standard or URL-safe base64, as DSSE allows both.

    Raises:
        RefusalError: ``bad_request`` naming ``what``.
    """
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise RefusalError(ErrorCode.BAD_REQUEST, f"{what} is not base64") from None


def pae(payload_type: str, body: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: what a signature covers (DSSE protocol.md, "PAE")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)
