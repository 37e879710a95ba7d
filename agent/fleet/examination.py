"""What a signed manifest or a bundle says, who signed it, and everything that is wrong with it.

The rules are the ones that a device applies, except that nothing ends at the first fault.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agent.adapters.signatures import verify, verify_bundle
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.manifest import Envelope, Identity
from agent.contract.oms import MAX_FILE_BYTES, read_bundle
from agent.contract.wire import describe, parse_object
from agent.fleet.keys import describe_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from agent.adapters.trusted_keys import TrustedKey
    from agent.contract.manifest import Manifest

JsonObject = dict[str, Any]
CHUNK = 4 * 2**20


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, with the contract's code and the next step."""

    code: str
    detail: str
    hint: str | None = None

    @staticmethod
    def of(refusal: RefusalError) -> Fault:
        """Return what a device would answer."""
        return Fault(str(refusal.code), refusal.detail, refusal.hint)


@dataclass
class Examination:
    """What was found.

    Attributes:
        says: the content, signed or not.
        signers: every key id that the file names.
        trusted_by: the key that made it trusted, or None.
        faults: what is wrong; empty for one that a device would accept.
    """

    says: JsonObject
    signers: list[str]
    trusted_by: str | None = None
    faults: list[Fault] = field(default_factory=list)

    def to_json(self) -> JsonObject:
        """Return it as JSON."""
        return {"ok": not self.faults, **asdict(self)}

    def check(self, rule: Any, *arguments: Any, **named: Any) -> Any:
        """Apply a rule; a refusal becomes a fault."""
        try:
            return rule(*arguments, **named)
        except RefusalError as refusal:
            self.faults.append(Fault.of(refusal))
            return None


def read_envelope(content: bytes) -> tuple[Envelope, Manifest]:
    """Parse a manifest's file: a bare envelope, or a ``deploy`` with one in it.

    Raises:
        RefusalError: ``bad_request`` with what is wrong and where.
    """
    body = parse_object(content)
    if isinstance(body.get("manifest"), dict):
        body = body["manifest"]
    try:
        envelope = Envelope.model_validate(body)
    except ValidationError as error:
        raise RefusalError(
            ErrorCode.BAD_REQUEST, f"no signed manifest: {describe(error)}", "make one with nibblectl sign"
        ) from None
    return envelope, envelope.manifest()


def examine(
    content: bytes,
    keys: Sequence[TrustedKey] | None,
    now: datetime,
    *,
    identity: Identity | None = None,
    file: Path | None = None,
    where: str = "trust.keys_dir",
) -> Examination:
    """Examine a signed manifest.

    Args:
        content: the file.
        keys: whom to trust; None to judge no signature.
        now: wall time.
        identity: the device that it is for; None to judge no audience.
        file: the model's file, to be compared with what the manifest says of it.
        where: the keys lie, for hints.

    Raises:
        RefusalError: it is no signed manifest at all.
    """
    envelope, manifest = read_envelope(content)
    found = Examination(manifest.model_dump(mode="json"), [each.keyid for each in envelope.signatures])
    anybody = manifest.model_copy(update={"audience": type(manifest.audience)()}) if identity is None else manifest
    found.check(anybody.check, identity or Identity("-"), now=now, highest_sequence=None)
    if keys is not None:
        usable = [key for key in keys if not key.is_for_bundles]
        signer = found.check(verify, envelope, usable, manifest.model, now, where)
        found.trusted_by = signer and signer.key_id
    if file is not None:
        found.check(_compare, manifest, file)
    return found


def examine_bundle(
    content: bytes, keys: Sequence[TrustedKey] | None, path: Path | None, now: datetime, *, model: str, where: str
) -> Examination:
    """Examine a bundle of OpenSSF Model Signing.

    Args:
        content: the bundle.
        keys: whom to trust; None to judge no signature.
        path: the model's directory or file, None to compare no file.
        now: wall time, for the dates of keys.
        model: name that the keys have to be trusted for.
        where: the keys lie, for hints.

    Raises:
        RefusalError: it is no such bundle.
    """
    bundle = read_bundle(content)
    signed = bundle.signed_model(MAX_FILE_BYTES)
    says = {"name": signed.name, "files": signed.files, "ignored": list(signed.ignored)}
    found = Examination(says, [bundle.key_hint or ""])
    if keys is not None:
        usable = [key for key in keys if key.is_for_bundles]
        signer = found.check(verify_bundle, bundle, usable, model, now, where)
        found.trusted_by = signer and signer.key_id
    if path is not None:
        present = _tree(path, signed.ignored)
        found.faults += [_differs(name, signed.files.get(name), here) for name, here in present.items()
                         if signed.files.get(name) != here]  # fmt: skip
        missing = sorted(signed.files.keys() - present.keys())
        found.faults += [
            Fault(str(ErrorCode.CHECKSUM_MISMATCH), f"{name} was signed and is missing") for name in missing
        ]
    return found


def _compare(manifest: Manifest, file: Path) -> None:
    here = describe_file(file, "")
    for each in manifest.files:
        if (each.sha256, each.size) == (here["sha256"], here["size"]):
            return
    told = "; ".join(f"{each.name}: {each.size} bytes, sha256 {each.sha256}" for each in manifest.files)
    raise RefusalError(
        ErrorCode.CHECKSUM_MISMATCH,
        f"{file} has {here['size']} bytes, sha256 {here['sha256']}; the manifest says {told}",
        "sign the file again, or find the one that was signed",
    )


def _tree(path: Path, ignored: Sequence[str]) -> dict[str, str]:
    """Return the digest of every file below ``path`` that was not left out; of one file, under its name."""
    if not path.is_dir():
        return {path.name: _sha256(path)}
    files = (each for each in sorted(path.rglob("*")) if each.is_file() or each.is_symlink())
    names = ((each.relative_to(path).as_posix(), each) for each in files)
    return {name: _sha256(each) for name, each in names if not _is_ignored(name, ignored)}


def _is_ignored(name: str, ignored: Sequence[str]) -> bool:
    return any(name == each or name.startswith(f"{each}/") for each in ignored)


def _sha256(path: Path) -> str:
    if path.is_symlink():
        return "a symbolic link"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _differs(name: str, signed: str | None, here: str) -> Fault:
    detail = f"{name} has {here}, signed was {signed}" if signed else f"{name} was not signed"
    return Fault(str(ErrorCode.CHECKSUM_MISMATCH), detail)
