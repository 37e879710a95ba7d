"""Holds every reply of a test against the OpenAPI document: route, status, headers and body."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

if TYPE_CHECKING:
    import httpx

LENGTH = "inference-header-content-length"


class Described:
    """Checks replies against ``document``."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._routes = [(_pattern(path), operations) for path, operations in _by_length(document["paths"])]
        self._text = json.dumps(document, sort_keys=True)

    async def check(self, reply: httpx.Response) -> None:
        """Fail for a reply that the document does not promise."""
        await reply.aread()
        path = reply.request.url.raw_path.decode().partition("?")[0]
        self.expect(reply.request.method, path, reply.status_code, dict(reply.headers), reply.content)

    def expect(self, method: str, path: str, status: int, headers: dict[str, str], body: bytes) -> None:
        """As ``check``, from values."""
        told = f"{method} {path} -> {status}"
        operations = next((operations for pattern, operations in self._routes if pattern.fullmatch(path)), None)
        if operations is None:
            assert status in (401, 404), f"{told}: the route is not described"
            return
        operation = operations.get("get" if method == "HEAD" else method.lower())
        if operation is None:
            assert status in (401, 405), f"{told}: the method is not described"
            allowed = {name.upper() for name in operations} | ({"HEAD"} if "get" in operations else set())
            assert status == 401 or set(headers["allow"].split(", ")) == allowed, told
            return
        assert str(status) in operation["responses"], f"{told}: the status is not described"
        response = operation["responses"][str(status)]
        missing = [
            name
            for name, spec in response.get("headers", {}).items()
            if spec.get("required") and name.lower() not in headers
        ]
        assert missing == [], f"{told}: without {missing}"
        assert headers["content-type"] in response["content"], f"{told}: {headers['content-type']}"
        if method != "HEAD":
            self._check_body(told, response["content"], headers, body)

    def _check_body(self, told: str, content: dict[str, Any], headers: dict[str, str], body: bytes) -> None:
        kind = headers["content-type"]
        if kind.startswith(("text/plain", "text/event-stream")):
            return
        if kind == "application/octet-stream":
            kind, body = "application/json", body[: int(headers[LENGTH])]
        else:
            assert LENGTH not in headers, told
        errors = list(_validator(self._text, json.dumps(content[kind]["schema"])).iter_errors(json.loads(body)))
        assert errors == [], f"{told}: {errors[0].message}"


@lru_cache(maxsize=256)
def _validator(document: str, schema: str) -> Draft202012Validator:
    return Draft202012Validator({**json.loads(schema), "components": json.loads(document)["components"]})


def _by_length(paths: dict[str, Any]) -> list[tuple[str, Any]]:
    # What is spelt out goes before what is a parameter.
    return sorted(paths.items(), key=lambda item: item[0].count("{"))


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{[a-z]+\\\}", "[^/]+", re.escape(path)))
