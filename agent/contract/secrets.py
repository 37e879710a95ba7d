"""What must not be shown: the secret parts of addresses, and keys. Pure functions from text to text.

Presigned addresses carry their secret in the query, others a password before the host; a private key that was put where
a path belongs is a secret as a whole.
"""

from __future__ import annotations

import re
from typing import Any

_URL = re.compile(
    r"\b(?:([a-z][a-z0-9+.-]*://)(?:[^\s/?#\"']*@)?|(models:/))([^\s?#\"']*)(?:[?#][^\s\"']*)?", re.IGNORECASE
)
_KEY_BEGIN = "-----BEGIN "
_KEY = re.compile(r"-----BEGIN ([A-Z ]*)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)


def redacted(text: str) -> str:
    """Return ``text``: its URLs without user, password, query and fragment, its PEM blocks without content."""
    if _KEY_BEGIN in text:
        text = _KEY.sub(r"\1 ***", text)
    return _URL.sub(r"\1\2\3", text) if ":/" in text else text


def forgotten(request: Any) -> Any:
    """Return a command's fields without what only carries it out: the secrets of ``url``, and what was signed."""
    if isinstance(request, dict):
        return {key: _forgotten(key, value) for key, value in request.items()}
    if isinstance(request, list):
        return [forgotten(item) for item in request]
    return request


def _forgotten(key: str, value: Any) -> Any:
    if key in ("manifest", "signature"):  # signed as a whole, address included
        return None
    return redacted(value) if key == "url" and isinstance(value, str) else forgotten(value)
