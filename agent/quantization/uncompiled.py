"""torch without Dynamo, its compiler's first part, where nothing is compiled: it takes most of a second and 35 MiB."""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME, MARK = "torch._dynamo", "__dynamo_disable"


@contextlib.contextmanager
def without_dynamo() -> Iterator[None]:
    """Spare torch the import of Dynamo that it makes only to hide functions from it.

    torch (2.14, ``_compile.py``) does so at the first call of every operator that is written in Python, as those of the
    meta device are, and of a dispatch mode. Meanwhile something that hides nothing takes Dynamo's place; afterwards all
    is as before. Where Dynamo is there already, it stays.
    """
    if NAME in sys.modules:
        yield
        return
    hidden: list[Any] = []

    def disable(function: Any, *_options: Any, **_named: Any) -> Any:
        hidden.append(function)
        return function

    stand_in = ModuleType(NAME)
    stand_in.disable = disable  # type: ignore[attr-defined]
    sys.modules[NAME] = stand_in  # where torch's own lazy attribute finds it
    try:
        yield
    finally:
        del sys.modules[NAME]
        for function in hidden:  # torch remembers there what Dynamo made of it
            vars(function).pop(MARK, None)
