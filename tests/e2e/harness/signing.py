"""Keys and signatures by stock ``openssl``, as an operator without this project's tools makes them."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from tests.e2e.harness.tools import require

if TYPE_CHECKING:
    from pathlib import Path

JsonObject = dict[str, Any]
PAYLOAD_TYPE = "application/vnd.nibbled.manifest+json"


class Signer:
    """An Ed25519 key pair; ``directory`` holds the public half as ``<name>.pub`` for a device to trust.

    Attributes:
        key: the file of the private half.
    """

    def __init__(self, directory: Path, private_directory: Path, name: str) -> None:
        self.name = name
        self._directory = private_directory
        self.key = private_directory / f"{name}.pem"
        self._signing = threading.Lock()
        self._openssl("genpkey", "-algorithm", "ed25519", "-out", str(self.key))
        self._openssl("pkey", "-in", str(self.key), "-pubout", "-out", str(directory / f"{name}.pub"))

    def seal(self, manifest: JsonObject) -> JsonObject:
        """Return ``manifest`` in a signed DSSE envelope."""
        payload = json.dumps(manifest).encode()
        return {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": self.name, "sig": base64.b64encode(self._sign(_pae(payload))).decode()}],
        }

    def _sign(self, message: bytes) -> bytes:
        text, signature = self._directory / "message", self._directory / "signature"
        files = ("-inkey", str(self.key), "-in", str(text), "-out", str(signature))
        with self._signing:
            text.write_bytes(message)
            self._openssl("pkeyutl", "-sign", "-rawin", *files)
            return signature.read_bytes()

    def _openssl(self, *arguments: str) -> None:
        subprocess.run([require("openssl"), *arguments], check=True, timeout=10, capture_output=True)


def _pae(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding (DSSE protocol.md, "Signature Definition")."""
    kind = PAYLOAD_TYPE.encode()
    return b" ".join((b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload))
