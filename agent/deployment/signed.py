"""Whether a command, or a wanted state, was signed by somebody who may: the ``signature`` field. Decides only.

A signature that is there is always checked; whether there has to be one is configured. What the device begins by
itself, and what a person with a token does at its page, needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.contract import signed
from agent.contract.desired import OWN
from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.wire import parse_object

if TYPE_CHECKING:
    from datetime import datetime

    from agent.contract.commands import AnyCommand
    from agent.contract.desired import Desired
    from agent.contract.manifest import Envelope, Signer
    from agent.deployment.ports import Clock, Signatures


class SignedMessages:
    """Judges what arrives by its signature.

    Args:
        signatures: the trusted keys.
        clock: time, for keys with an end.
        device: id of this device.
        is_required: whether an unsigned message is refused.
    """

    def __init__(self, signatures: Signatures, clock: Clock, device: str, *, is_required: bool) -> None:
        self._signatures = signatures
        self._clock = clock
        self._device = device
        self._is_required = is_required

    def check_content(self, command: AnyCommand, payload: bytes) -> None:
        """Compare a command as it arrived with what its signature says.

        Raises:
            RefusalError: they differ, or there has to be a signature.
        """
        if command.signature is not None:
            signed.check(command.signature, {"device": self._device}, command.name, parse_object(payload))
        elif self._is_required:
            raise RefusalError(
                ErrorCode.UNTRUSTED_KEY,
                f"trust.require_command_signature is on and the {command.name} carries no signature",
                "nibblectl --sign-key NAME.key sends it signed; nibblectl sign-command signs what others send",
            )

    def signers(self, command: AnyCommand, model: str, now: datetime | None) -> list[Signer]:
        """Return the trusted key that signed a command, nothing for one without a signature.

        Args:
            command: whose content was compared.
            model: that it concerns; empty for one that concerns the device, for which the key has to be unlimited.
            now: wall time, or None when the clock is not synchronised.

        Raises:
            RefusalError: no key that is trusted for it did.
        """
        return [self._signatures.verify(command.signature, model, now)] if command.signature is not None else []

    def check_document(self, document: Desired, source: str, payload: bytes) -> None:
        """Judge a wanted state; it concerns all models, so a key that is limited to some may not sign it.

        Args:
            document: parsed.
            source: ``OWN``, or the group whose document it is.
            payload: as it arrived.

        Raises:
            RefusalError: what was signed is something else, no trusted key signed it, or there has to be a signature.
        """
        if document.signature is not None:
            recipient = {"device": self._device} if source == OWN else {"group": source}
            signed.check(document.signature, recipient, signed.DESIRED, parse_object(payload))
            self._verify(document.signature)
        elif self._is_required:
            raise RefusalError(
                ErrorCode.UNTRUSTED_KEY,
                "trust.require_command_signature is on and the wanted state carries no signature",
                "nibblectl sign-command desired FILE signs it",
            )

    def check_halt(self, signature: Envelope, group: str, payload: bytes) -> None:
        """Judge the signature of a group's halt, for which the key has to be unlimited.

        Args:
            signature: of the halt.
            group: that it stops.
            payload: as it arrived.

        Raises:
            RefusalError: what was signed is something else, or no trusted key signed it.
        """
        signed.check(signature, {"group": group}, signed.HALT, parse_object(payload))
        self._verify(signature)

    def _verify(self, signature: Envelope) -> None:
        """Raise ``RefusalError`` unless a key signed that is trusted for every model."""
        now = self._clock.now() if self._clock.is_synchronised() else None
        self._signatures.verify(signature, "", now)
