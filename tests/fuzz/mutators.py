"""Changes to inputs that keep their form: JSON that stays JSON, so that the fuzzer gets past the first look."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

LEAVES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 10**30, -0.0, 0.5, 1e308, 5e-324, "", "a", "a/b", "../x", "+",
    "#", "\0", "\ud800", "é", "\U0001d518", "x" * 65, "x" * 5000, "NaN", "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z", "1970-01-01T00:00:00Z", "auto", "nf4", "fp4-dq", "mixed",
    "file:///etc/passwd", [], {}, [[]], {"": {}}, [None] * 100, ["kanji"], {"a": 1},
)  # fmt: skip
"""Values that programs stumble over."""


def mutated_json(raw: bytes, draw: random.Random, words: Sequence[str]) -> bytes:
    """Return ``raw`` with some of its values changed, if it is JSON; else as it is.

    Args:
        raw: UTF-8 JSON.
        draw: where chance comes from.
        words: keys that may be put into objects.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        value = _mutated(value, draw, words)
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def mutated_bytes(raw: bytes, draw: random.Random, most: int) -> bytes:
    """Return ``raw`` with bytes flipped, put in, taken away, doubled or cut off."""
    changed = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(changed) + 1)
        some = draw.randbytes(draw.choice((1, 1, 2, 4, 8)))
        match draw.randrange(5):
            case 0:
                changed[at : at + len(some)] = some
            case 1:
                changed[at:at] = some
            case 2:
                del changed[at : at + draw.choice((1, 4, 64, 4096))]
            case 3:
                changed[at:at] = changed[at : at + draw.choice((1, 8, 256))]
            case _:
                changed[at : at + 1] = bytes([(changed[at] if at < len(changed) else 0) ^ 1 << draw.randrange(8)])
    return bytes(changed[:most])


def _mutated(value: Any, draw: random.Random, words: Sequence[str]) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.8:
        return _mutated_object(value, draw, words)
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        instead = draw.choice(
            ([], [value[at]] * 2, [_mutated(value[at], draw, words)], [_mutated(value[at], draw, words)])
        )
        return [*value[:at], *instead, *value[at + 1 :]]
    if isinstance(value, str) and value and draw.random() < 0.4:
        at = draw.randrange(len(value))
        return value[:at] + draw.choice(("", "\0", "/", "=", "é", "A", value[at] * 2, "\ud800")) + value[at + 1 :]
    if isinstance(value, int) and draw.random() < 0.4:
        return value + draw.choice((-1, 1, 2**31, -(2**63)))
    return draw.choice(LEAVES)


def _mutated_object(value: dict[str, Any], draw: random.Random, words: Sequence[str]) -> dict[str, Any]:
    key = draw.choice(list(value))
    match draw.randrange(8):
        case 0:
            return {name: item for name, item in value.items() if name != key}
        case 1:
            return {**value, draw.choice(words): draw.choice(LEAVES)}
        case 2:
            return {**value, draw.choice(words): value[key]}
        case _:
            return {**value, key: _mutated(value[key], draw, words)}
