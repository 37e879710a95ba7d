"""Modules that a library imports and this process does not use: they are imported when something is asked of them.

``importlib.util.LazyLoader`` does not serve: the statement ``import`` itself asks its modules for their ``__spec__``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def postpone(name: str) -> None:
    """Let ``import NAME`` cost nothing until the module is used; one that is imported already stays."""
    sys.modules.setdefault(name, _Later(name))
