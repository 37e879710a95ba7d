"""JSON at the edge: bounded, strict, and with errors that a person can act on."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from pydantic import AfterValidator, AwareDatetime

from agent.contract.errors import ErrorCode, RefusalError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import ValidationError

MAX_PAYLOAD_BYTES = 64 * 1024
MAX_DEPTH = 32

JsonObject = dict[str, Any]
_KINDS = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def _told_in_utc(moment: datetime) -> datetime:
    """Refuse a date that has no name in UTC, such as midnight of year 1 east of Greenwich."""
    try:
        moment.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("a date outside of the years 1 to 9999 in UTC") from None
    return moment


Moment = Annotated[AwareDatetime, AfterValidator(_told_in_utc)]
"""A date with its offset that can be compared and told in UTC."""


def parse_object(payload: bytes, most_bytes: int = MAX_PAYLOAD_BYTES) -> JsonObject:
    """Parse a JSON object of at most 64 KiB and 32 levels; NaN, duplicate keys and half characters are refused.

    Args:
        payload: as it arrived.
        most_bytes: the limit for what comes from elsewhere than the broker.

    Raises:
        RefusalError: ``bad_request`` saying what is wrong.
    """
    if len(payload) > most_bytes:
        raise _bad(f"{len(payload)} bytes, at most {most_bytes} are accepted")
    try:
        value = json.loads(payload.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _bad(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _bad(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except ValueError:  # int() refuses to read thousands of digits
        raise _bad("unusable: it contains a number with too many digits") from None
    except RecursionError:
        raise _bad(f"nested deeper than {MAX_DEPTH} levels") from None
    if not isinstance(value, dict):
        raise _bad(f"{kind_of(value)}, expected an object")
    if _is_deeper_than(value, MAX_DEPTH):
        raise _bad(f"nested deeper than {MAX_DEPTH} levels")
    if b"\\u" in payload and not _is_text(value):
        raise _bad("unusable: it contains half of a surrogate pair, which is no character")
    return value


def kind_of(value: Any) -> str:
    """Return what a value of JSON is, in JSON's words: ``a JSON array``, ``JSON null``."""
    return "JSON null" if value is None else f"a JSON {_KINDS[type(value)]}"


def dump(value: JsonObject) -> bytes:
    """Return compact UTF-8 JSON with keys in the order given.

    A measurement that is not finite is sent as null: JSON has no word for it, and a report must not fail over it.
    """
    return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def describe(error: ValidationError) -> str:
    """Return every complaint of pydantic as ``field: what was expected``, at most five of them."""
    complaints = [
        f"{'.'.join(str(part) for part in item['loc']) or 'payload'}: {complaint(item)}"
        for item in error.errors(include_url=False, include_input=False)
    ]
    more = f" (and {len(complaints) - 5} more)" if len(complaints) > 5 else ""  # noqa: PLR2004 - said above
    return "; ".join(complaints[:5]) + more


def complaint(item: Mapping[str, Any]) -> str:
    """Return the words of one of pydantic's errors, without the prefix that it puts before words of our own."""
    return str(item["ctx"]["error"] if item["type"] == "value_error" else item["msg"])


def alternatives(complaints: Sequence[str]) -> str:
    """Return what is wrong with a value that may be of several types, each said once: ``Input should be A or B``."""
    head = "Input should be "
    first, *others = dict.fromkeys(complaints)
    return " or ".join([first, *(each.removeprefix(head) for each in others)])


def rfc3339(moment: datetime) -> str:
    """Return ``moment`` in UTC as RFC 3339 with milliseconds and ``Z``."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bad(detail: str) -> RefusalError:
    return RefusalError(ErrorCode.BAD_REQUEST, f"the payload is {detail}")


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    seen: JsonObject = {}
    for key, value in pairs:
        if key in seen:
            raise _bad(f"ambiguous: key {key!r} occurs twice")
        seen[key] = value
    return seen


def _no_constant(name: str) -> NoReturn:
    raise _bad(f"not JSON: {name} is no JSON number")


def _is_text(value: JsonObject) -> bool:
    """Return whether a value can be written as UTF-8 again: one half of a surrogate pair alone cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _is_deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return any(isinstance(item, (dict, list)) for item in level)
