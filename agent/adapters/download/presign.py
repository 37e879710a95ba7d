"""The child that signs addresses of object stores with obstore: one question on stdin, one answer on stdout.

    {"url": "s3://bucket/key", "config": {"access_key_id": "…"}} -> {"url": "https://…"} or {"error": "…", "hint": "…"}

Only credentials that sign without asking anybody are taken; others would make the library ask a metadata service.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

VALID = timedelta(minutes=15)
"""How long an address is good for; a download that began goes on beyond."""
MISSING = "no obstore, which signs addresses of object stores"
INSTALL = "pip install 'nibbled[cloud]'"
NEEDED: dict[str, tuple[frozenset[str], ...]] = {
    "s3": (frozenset({"access_key_id", "secret_access_key"}),),
    "gs": (frozenset({"service_account_key"}), frozenset({"service_account"})),
    "az": (frozenset({"account_name", "account_key"}),),
}
"""By scheme, the sets of keys of which one has to be there, as obstore calls them."""


def answer(question: Mapping[str, Any]) -> dict[str, str]:
    """Return the signed address, or what is wrong in words that quote no credential."""
    try:
        import obstore  # noqa: PLC0415 - an extra
        from obstore.exceptions import BaseError  # noqa: PLC0415 - likewise
        from obstore.store import from_url  # noqa: PLC0415 - likewise
    except ImportError:
        return {"error": MISSING, "hint": INSTALL}
    parts = urlsplit(question["url"])
    config: Any = dict(question["config"])
    is_plain = str(config.get("endpoint", config.get("aws_endpoint", ""))).startswith("http://")
    try:
        store: Any = from_url(
            f"{parts.scheme}://{parts.netloc}", config=config, client_options={"allow_http": is_plain}
        )
        given = {str(key) for key in store.config}
        if not any(needed <= given for needed in NEEDED[parts.scheme]):
            wanted = " or ".join(", ".join(sorted(needed)) for needed in NEEDED[parts.scheme])
            return {"error": f"the credentials lack {wanted}"}
        return {"url": obstore.sign(store, "GET", unquote(parts.path).lstrip("/"), VALID)}
    except (BaseError, ValueError, TypeError) as error:
        text = str(error).splitlines()[0][:300] if str(error) else ""
        for value in config.values():
            text = text.replace(value, "***")
        return {"error": f"{type(error).__name__}: {text}"}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))  # noqa: T201 - the answer
