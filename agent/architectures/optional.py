"""Packages that only some types or outputs need: imported when they are needed, asked for by name if missing."""

from __future__ import annotations

import importlib
from typing import Any

from agent.architectures.errors import ArchitectureError


class MissingPackageError(ArchitectureError):
    """An optional package that is not installed, or cannot be imported as it is.

    Attributes:
        hint: the command that installs it.
    """

    def __init__(self, package: str, extra: str, purpose: str, reason: str) -> None:
        self.hint = f"pip install 'nibbled[{extra}]'"
        super().__init__(f"{purpose} needs the package {package!r}: {reason}; {self.hint}")


def require(package: str, extra: str, purpose: str) -> Any:
    """Return the module ``package``.

    Args:
        package: what to import.
        extra: the extra of this distribution that brings it.
        purpose: what needs it, the subject of the message.

    Raises:
        MissingPackageError: its import fails, for whatever reason.
    """
    try:
        return importlib.import_module(package)
    except Exception as error:
        # A package that fits another torch fails with RuntimeError or OSError, not with ImportError.
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise MissingPackageError(package, extra, purpose, reason) from error
