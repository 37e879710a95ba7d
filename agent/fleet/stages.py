"""How people write the stages of a rollout that devices carry out by themselves: ``5%@0,25%@1h,100%@4h``. Pure."""

from __future__ import annotations

import re
from typing import Any

JsonObject = dict[str, Any]
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_STAGE = re.compile(r"(\d+(?:\.\d+)?)%?@(.+)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration_s(text: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``10m``, ``4h`` or ``1d``.

    Raises:
        ValueError: it is none of these.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r}: expected such as 90s, 10m, 4h or 1d")
    return float(found[1]) * _UNITS[found[2]]


def stages(text: str) -> list[JsonObject]:
    """Return the stages of a rollout as its document has them.

    Raises:
        ValueError: one of them is no percentage and time.
    """
    return [_stage(part.strip()) for part in text.split(",")]


def _stage(text: str) -> JsonObject:
    found = _STAGE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r}: expected a percentage and when, such as 25%@1h")
    return {"percent": float(found[1]), "after_s": duration_s(found[2])}
