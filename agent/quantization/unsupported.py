"""What this installation, or a model's own form, does not allow; told apart from a damaged checkpoint."""

from __future__ import annotations

from agent.quantization.errors import BuildError


class UnsupportedError(BuildError):
    """A package is missing, or a model has no form in the format that was asked for."""

    code = "unsupported"
