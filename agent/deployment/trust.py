"""Whether a command may be acted on here and now: its dates, its manifest, all signatures. Decides only.

The order is the contract's: expiry, sequence, audience, then the signature. Dates are judged by a synchronised clock
only. Without one, whatever has a date to be judged waits (``Trusted.waits_for``) and is looked at again later; the
sequence is judged at once in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.contract.commands import Cancel, Deploy
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.wire import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from agent.contract.commands import AnyCommand
    from agent.contract.manifest import Identity, Signer
    from agent.deployment.ports import Clock, Journal, Signatures
    from agent.deployment.signed import SignedMessages


@dataclass(frozen=True)
class Trusted:
    """A command that may be acted on.

    Attributes:
        sequence: of its manifest, to be remembered; None without one.
        waits_for: why it has to wait until the clock is synchronised, or None.
    """

    sequence: int | None = None
    waits_for: str | None = None


def deferral(dates: Mapping[str, datetime]) -> str | None:
    """Return the sentence for an operation that waits because of ``dates``; None when there are none."""
    if not dates:
        return None
    told = ", ".join(f"{name} {rfc3339(date)}" for name, date in dates.items())
    return (
        f"deferred: the clock is not synchronised, and this cannot be judged without: {told}; "
        "it goes on when the clock is set; what has no date need not wait"
    )


class Trust:
    """Judges commands against the clock, the journal and the trusted keys.

    Args:
        journal: knows the highest sequence of each model.
        signatures: the trusted keys.
        clock: time.
        identity: this device.
        signed: judges the signatures of commands themselves.
        require_signature: whether a deploy must be signed.
    """

    def __init__(
        self,
        journal: Journal,
        signatures: Signatures,
        clock: Clock,
        identity: Identity,
        signed: SignedMessages,
        *,
        require_signature: bool,
    ) -> None:
        self._journal = journal
        self._signatures = signatures
        self._clock = clock
        self._identity = identity
        self._signed = signed
        self._require_signature = require_signature

    def check(self, command: AnyCommand, *, is_own: bool) -> Trusted:
        """Return what follows for a command that may be acted on.

        Args:
            command: the content of its own signature has been compared.
            is_own: whether no operator sent it: then it needs no signature of its own.

        Raises:
            RefusalError: it may not.
        """
        now = self._clock.now() if self._clock.is_synchronised() else None
        if now is not None and command.is_expired(now):
            raise RefusalError(ErrorCode.EXPIRED, f"the command was to be acted on before {command.expires_at}")
        dates = {"expires_at": command.expires_at} if command.expires_at else {}
        sequence, signers = None, []
        if isinstance(command, Deploy):
            sequence = self._check_manifest(command, now)
            dates |= command.manifest.manifest().dates if command.manifest else {}
            signers = self._signers(command, now)
        if not is_own:
            signers += self._signed.signers(command, self._subject(command), now)
        dates |= {f"not_after of key {each.key_id}": each.not_after for each in signers if each.not_after}
        return Trusted(sequence, deferral(dates) if now is None else None)

    def _subject(self, command: AnyCommand) -> str:
        """Return the model that a command concerns, empty for one that concerns the device."""
        if isinstance(command, Cancel):
            target = self._journal.operation(command.operation)
            return (target and target.model) or ""
        return str(getattr(command, "model", ""))

    def _check_manifest(self, command: Deploy, now: datetime | None) -> int | None:
        if command.manifest is None:
            if self._require_signature and command.oms is None:
                raise RefusalError(
                    ErrorCode.UNTRUSTED_KEY,
                    "trust.require_signature is on and the deploy carries no signed manifest",
                    "nibblectl keygen NAME, copy NAME.pub to trust.keys_dir; then nibblectl sign the artifact",
                )
            return None
        manifest = command.manifest.manifest()
        if manifest.model != command.model:
            raise RefusalError(
                ErrorCode.BAD_REQUEST, f"the deploy is for {command.model}, its manifest for {manifest.model}"
            )
        highest = self._journal.highest_sequence(command.model)
        manifest.check(self._identity, now=now, highest_sequence=highest)
        return manifest.sequence

    def _signers(self, command: Deploy, now: datetime | None) -> list[Signer]:
        if not self._require_signature:
            return []
        found = []
        if command.manifest is not None:
            found.append(self._signatures.verify(command.manifest, command.model, now))
        if command.oms is not None:
            found.append(self._signatures.verify_bundle(command.oms, command.model, now))
            self._check_bundle(command)
        return found

    def _check_bundle(self, command: Deploy) -> None:
        if command.oms is None:
            return
        model = command.oms.signed_model()
        if command.manifest is not None:
            model.require({file.name: file.sha256 for file in command.manifest.manifest().files})
            return
        if command.artifact is not None:
            model.require({"the artifact": command.artifact.sha256})
        highest = self._journal.highest_sequence(command.model)
        if highest is not None:
            raise RefusalError(
                ErrorCode.STALE_SEQUENCE,
                f"a bundle has no sequence, and {command.model} is at sequence {highest}",
                "send a signed manifest with a higher sequence beside the bundle",
            )
