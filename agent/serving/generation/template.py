"""Running a checkpoint's chat template, which is a program in Jinja.

The library runs it in a sandbox, where it reaches neither files nor attributes of objects; here it also has to end: it
may execute ``MAX_LINES`` lines and write ``MAX_CHARACTERS``. What remains is trusted as far as the checkpoint is.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

T = TypeVar("T")
MAX_LINES = 1_000_000
MAX_CHARACTERS = 16 << 20
TEMPLATE_FILE = "<template>"
"""What compiled templates are called in frames (``jinja2/environment.py``, ``Environment.compile``)."""


class TemplateLimitError(Exception):
    """A template went on for too long or wrote too much."""


def bounded(render: Callable[[], T], max_lines: int = MAX_LINES, max_characters: int = MAX_CHARACTERS) -> T:
    """Return ``render()``, in this thread, within the limits; raises ``TemplateLimitError`` beyond them."""
    lines = characters = 0

    def follow(_frame: FrameType, event: str, value: Any) -> Any:
        nonlocal lines, characters
        if event == "line":
            lines += 1
        elif event == "return" and isinstance(value, str):  # a yield is one, too: what a template writes is yielded
            characters += len(value)
        if lines > max_lines or characters > max_characters:
            raise TemplateLimitError(
                f"the chat template was stopped after {lines} lines and {characters} characters, "
                f"at most {max_lines} and {max_characters} are granted"
            )
        return follow

    before = sys.gettrace()
    sys.settrace(lambda frame, _event, _value: follow if frame.f_code.co_filename == TEMPLATE_FILE else None)
    try:
        return render()
    finally:
        sys.settrace(before)
