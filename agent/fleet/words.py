"""What a device said, as lines for people. Pure: from the bodies of its messages to text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

JsonObject = dict[str, Any]


def operation_lines(state: JsonObject) -> Iterator[str]:
    """Yield where an operation stands, why it waits, and what went wrong."""
    progress = state.get("progress")
    how_far = f" {progress['done']}/{progress['total']} {progress['unit']}" if progress else ""
    yield f"{state['id']} {state['state']} {state.get('phase') or ''}{how_far}".rstrip()
    if state.get("detail"):
        yield f"  {state['detail']}"
    error = state.get("error")
    if error:
        yield f"  {error['code']}: {error['detail']}"
        yield from (f"  {name}: {error[name]}" for name in ("hint", "kept") if error.get(name))
