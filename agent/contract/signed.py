"""What the ``signature`` of a command or of a wanted state has to say: the whole message once more, and for whom.

It is a DSSE envelope like a manifest's. Its payload is JSON: ``device`` (``group`` for a group's wanted state),
``command``, and every field of the message but ``signature``. Values are compared after parsing, so no canonical JSON
is needed. Pure; whether a trusted key signed it is an adapter's to say.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.wire import JsonObject, parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.contract.manifest import Envelope

PAYLOAD_TYPE = "application/vnd.nibbled.command+json"
DESIRED = "desired"
"""What stands for the name of a command where a wanted state is signed."""
HALT = "halt"
"""The same for a group's halt."""
FIELD = "signature"
_AGAIN = "sign exactly what is sent, for the device that it is sent to, and send it unchanged: nibblectl --sign-key"


def statement(recipient: Mapping[str, str], name: str, body: Mapping[str, object]) -> JsonObject:
    """Return what is signed for a message.

    Args:
        recipient: ``{"device": ID}``, or ``{"group": NAME}`` of a group's wanted state.
        name: of the command, or ``DESIRED``.
        body: the message; a signature in it is left out, as it cannot sign itself.
    """
    return {**{key: value for key, value in body.items() if key != FIELD}, **recipient, "command": name}


def check(envelope: Envelope, recipient: Mapping[str, str], name: str, body: Mapping[str, object]) -> None:
    """Compare what an envelope says with the message that it came in.

    Raises:
        RefusalError: ``bad_request`` when it is none for a message, ``bad_signature`` with the first difference.
    """
    if envelope.payloadType != PAYLOAD_TYPE:
        raise RefusalError(
            ErrorCode.BAD_REQUEST,
            f"signature: payloadType {envelope.payloadType!r} is not {PAYLOAD_TYPE}",
            "sign with nibblectl --sign-key",
        )
    signed, sent = parse_object(envelope.body("signature.payload")), statement(recipient, name, body)
    for field in (*recipient, "command", *sent, *signed):
        difference = _difference(field, signed, sent, is_told=field in recipient or field == "command")
        if difference is not None:
            raise RefusalError(ErrorCode.BAD_SIGNATURE, difference, _AGAIN)


def _difference(field: str, signed: JsonObject, sent: JsonObject, *, is_told: bool) -> str | None:
    """Return in what a field differs; its values, which may be secret, are told of the recipient and the name only."""
    if field not in signed:
        return f"the signature does not cover {field!r}, which was sent"
    if field not in sent:
        return f"the signature covers {field!r}, which was not sent"
    if _written(signed[field]) == _written(sent[field]):
        return None
    if is_told:
        return f"the signature is for {field} {str(signed[field])[:64]!r}, this is {field} {sent[field]!r}"
    return f"{field!r} is not what was signed"


def _written(value: object) -> str:
    """Return a text that differs where JSON does: in Python 1, 1.0 and True are equal."""
    return json.dumps(value, sort_keys=True)
