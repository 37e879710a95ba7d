"""The JSON part of a request as Python values, exactly as strict as one parser, and where it pays as fast as another.

orjson says what is JSON. An array of numbers costs it an object for each of them; simdjson hands such an array over as
it stands in memory. So a text of some length is given to simdjson first: what it makes of one is the same, or the text
is given to orjson all the same. Its arrays of numbers are flat, of 64-bit floats, and hold no boolean. Pure.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import orjson

from agent.serving.errors import BadRequestError, TooLargeError

try:
    import simdjson
except ImportError:  # it comes with the extra fast-json; without it orjson reads everything
    simdjson = None  # type: ignore[assignment]

# JSON numbers become Python objects of 24 to 32 bytes each while the interpreter lock is held; larger tensors belong
# into the binary form, which is not copied at all.
MAX_BYTES = 16 * 1024 * 1024
LEAST_FAST_BYTES, MOST_FAST_BYTES = 2048, 1 << 20
"""Texts that simdjson reads: shorter ones gain nothing, and its parser keeps room for the longest that it ever read."""
MOST_RARE = 64
"""Rare bytes that are looked at one by one before a text is searched for the word itself."""
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
FLOATS = frozenset({"FP32", "FP64"})
_PARSER: Any = simdjson.Parser() if simdjson else None


def parse(text: bytes | memoryview) -> dict[str, Any]:
    """Return the object that a text is; ``data`` of an input of floats may be an array instead of a list.

    Raises:
        BadRequestError: it is no JSON, or no object.
        TooLargeError: it is over ``MAX_BYTES``.
    """
    if len(text) > MAX_BYTES:
        raise TooLargeError(
            f"the JSON part has {len(text)} bytes, at most {MAX_BYTES} are read: send tensors as binary data"
        )
    if _PARSER and LEAST_FAST_BYTES <= len(text) <= MOST_FAST_BYTES and text[:1] == b"{":
        header = _fast(bytes(text))
        if header is not None:
            return header
    try:
        header = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise BadRequestError("the request must be a JSON object")
    return header


def _fast(text: bytes) -> dict[str, Any] | None:
    """Return what orjson would, but for arrays of numbers; None for what it should see itself."""
    try:
        document: Any = _PARSER.parse(text)
        # Key by key: its items() makes objects of everything.
        header = {key: _plain(document[key]) for key in document if key != "inputs"}
        header["inputs"] = [_input(entry) for entry in document["inputs"]]
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError):
        # It is no JSON, or no request, or its data are not numbers alone.
        return None
    # simdjson flattens what is nested: such a text has more brackets than what came of it.
    arrays = sum(isinstance(value, list) for value in _values(header)) + len(header["inputs"])
    return header if _has_just(text, b"[", arrays) else None


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    return value.as_list() if isinstance(value, simdjson.Array) else value


def _input(entry: Any) -> dict[str, Any]:
    """Return an input of floats that has data; raises what an access to something else raises."""
    if entry["datatype"] not in FLOATS:
        raise TypeError(entry["datatype"])
    data = np.frombuffer(entry["data"].as_buffer(of_type="d"))
    return {**{key: _plain(entry[key]) for key in entry if key != "data"}, "data": data}


def refuse_duplicate_keys(text: bytes | memoryview, header: dict[str, Any]) -> None:
    """Raise ``BadRequestError`` if keys were dropped while ``text`` became ``header``."""
    # Outside strings, valid JSON has one colon per key: more colons than keys that survived parsing means that keys
    # were dropped. Only a request with a colon inside some string pays for the exact count.
    keys = sum(len(value) for value in _values(header) if isinstance(value, dict))
    if not _has_just(text, b":", keys) and STRING.sub(b"", bytes(text)).count(b":") != keys:
        raise BadRequestError("the request names a key twice in one object")


def _values(header: dict[str, Any]) -> list[Any]:
    """Return a header and every dict and list in it, but for what tensors hold."""
    # A loop of its own: the parser allows deeper nesting than the interpreter's stack.
    found: list[Any] = [header]
    for value in found:
        children = [each for key, each in value.items() if key != "data"] if isinstance(value, dict) else value
        found += [child for child in children if isinstance(child, (dict, list))]
    return found


def _has_just(text: bytes | memoryview, byte: bytes, number: int) -> bool:
    """Return whether a byte stands in a text just so many times."""
    if number > MOST_RARE:  # numpy counts fast, once there is something to count
        return int(np.count_nonzero(np.frombuffer(text, np.uint8) == byte[0])) == number
    # A few are found faster one by one; and numpy would let go of the interpreter, which costs two changes of threads.
    found, at, text = 0, -1, bytes(text)
    while found <= number and (at := text.find(byte, at + 1)) >= 0:
        found += 1
    return found == number


def mentions_booleans(body: bytes, length: int) -> bool:
    """Return whether ``true`` or ``false`` is anywhere in the first ``length`` bytes."""
    return _mentions(body, length, b"true", b"u") or _mentions(body, length, b"false", b"l")


def _mentions(body: bytes, length: int, word: bytes, rare: bytes) -> bool:
    # Numbers have neither a u nor an l, and a single byte is looked for many times faster than a word.
    at, before = body.find(rare, 0, length), word.index(rare)
    for _ in range(MOST_RARE):
        if at < 0:
            return False
        if body.startswith(word, max(0, at - before), length):
            return True
        at = body.find(rare, at + 1, length)
    return body.find(word, 0, length) >= 0
