"""What a person gave a command and what cannot be used; told as one sentence."""

from __future__ import annotations


class WrongInputError(ValueError):
    """An argument, or a file that one names, is wrong; the text says what is right."""
