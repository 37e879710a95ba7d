"""A device's inference port as an operator asks it: the Open Inference Protocol over HTTP, through urllib3.

A token is sent to loopback or over TLS only. Redirects are not followed, and an answer is read up to a limit.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.util import Timeout, parse_url

JsonObject = dict[str, Any]
MAX_BYTES = 64 * 2**20
CONNECT_S = 5.0


class InferenceError(Exception):
    """The device did not answer with what was asked for; ``status`` is that of HTTP, None where nobody answered."""

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class Inference:
    """One device.

    Attributes:
        url: of its port, such as ``https://box-17:8000``, or as the agent tells it, with ``/v2`` behind.
        token: to be sent, None for none.
        ca_file: authorities; the system's by default.
        timeout_s: for an answer.
    """

    url: str
    token: str | None = None
    ca_file: str | None = None
    timeout_s: float = 60.0

    def model(self, name: str) -> JsonObject:
        """Return the inputs and outputs of a model.

        Raises:
            InferenceError: nobody answers, or with an error.
        """
        return self._ask("GET", f"/v2/models/{name}")

    def infer(self, name: str, body: bytes) -> JsonObject:
        """Return the answer to an inference request, as JSON.

        Raises:
            InferenceError: nobody answers, or with an error.
        """
        return self._ask("POST", f"/v2/models/{name}/infer", body)

    def generate(self, name: str, text: str) -> JsonObject:
        """Return what a language model writes behind a text.

        Raises:
            InferenceError: nobody answers, or with an error.
        """
        return self._ask("POST", f"/v2/models/{name}/generate", json.dumps({"text_input": text}).encode())

    def _ask(self, method: str, path: str, body: bytes | None = None) -> JsonObject:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self.token is not None:
            if not _is_private(self.url):
                raise InferenceError(f"{self.url}: the token would be readable on its way; it takes https")
            headers["Authorization"] = f"Bearer {self.token}"
        options: dict[str, Any] = {"ca_certs": self.ca_file} if self.ca_file else {}
        try:
            with urllib3.PoolManager(retries=False, cert_reqs="CERT_REQUIRED", **options) as pool:
                response = pool.request(
                    method,
                    self.url.rstrip("/").removesuffix("/v2") + path,
                    body=body,
                    headers=headers,
                    redirect=False,
                    preload_content=False,
                    timeout=Timeout(connect=CONNECT_S, read=self.timeout_s),
                )
                content = response.read(MAX_BYTES)
                response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise InferenceError(f"{self.url}: {_reason(error)}") from None
        return _answer(self.url, response.status, content)


def _answer(url: str, status: int, content: bytes) -> JsonObject:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InferenceError(f"{url}: HTTP {status}, and no JSON object", status)
    if status != 200:  # noqa: PLR2004 - OK
        raise InferenceError(f"{url}: HTTP {status}: {found.get('error', found)}", status)
    return found


def _is_private(url: str) -> bool:
    """Return whether nobody on the way reads what is sent."""
    parsed = parse_url(url)
    host = (parsed.host or "").strip("[]")
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    return parsed.scheme == "https" or is_loopback


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return str(getattr(cause, "strerror", None) or cause).rpartition(": ")[2]
