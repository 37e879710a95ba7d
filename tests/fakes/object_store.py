"""A stand-in for an S3 store on loopback: serves files only to requests whose signature it can compute itself.

The signature is AWS's "Signature Version 4" in the query (docs.aws.amazon.com, "Authenticating Requests: Using Query
Parameters"), written down here without the library that makes it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qsl, quote, urlsplit


@dataclass(frozen=True)
class Account:
    """Whose signatures are good."""

    key_id: str
    secret: str
    region: str = "eu-central-1"

    def judge(self, path: str, headers: dict[str, str]) -> int | None:
        """Return 403 for a GET that this account did not sign, or whose time is over."""
        parts = urlsplit(path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        given = query.pop("X-Amz-Signature", "")
        began = datetime.strptime(f"{query.get('X-Amz-Date', '19700101T000000Z')}+0000", "%Y%m%dT%H%M%SZ%z")
        age = datetime.now(timezone.utc) - began
        is_good = hmac.compare_digest(given, self._signature(parts.path, query, headers["Host"]))
        if not is_good or age > timedelta(seconds=int(query.get("X-Amz-Expires", "0"))):
            return 403
        return None

    def _signature(self, path: str, query: dict[str, str], host: str) -> str:
        told = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items()))
        canonical = f"GET\n{path}\n{told}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
        date = query.get("X-Amz-Date", "")
        scope = f"{date[:8]}/{self.region}/s3/aws4_request"
        if query.get("X-Amz-Credential") != f"{self.key_id}/{scope}":
            return "none"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = f"AWS4{self.secret}".encode()
        for part in (date[:8], self.region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.digest(key, f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}".encode(), "sha256").hex()
