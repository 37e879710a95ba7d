"""What the builder refuses, as exceptions that carry the code, one sentence with numbers, and the next step.

Codes are those of ``agent.contract.errors.ErrorCode``; a test holds the two together. Nothing here imports torch.
"""

from __future__ import annotations

from typing import ClassVar


class BuildError(Exception):
    """A job that ends in an error event.

    Attributes:
        code: the stable code of the event.
        detail: one sentence with the numbers.
        hint: the next step, or None.
        is_retryable: whether the same job can succeed later.
    """

    code: ClassVar[str] = "internal"
    is_retryable: ClassVar[bool] = False

    def __init__(self, detail: str, hint: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class UnsafeCheckpointError(BuildError):
    """A file that could run code or was made to deceive; it is never opened further."""

    code = "unsafe_checkpoint"


class BadCheckpointError(BuildError):
    """A file that is damaged, or holds no weights that a loader may use."""

    code = "bad_checkpoint"


class ModelTypeError(BuildError):
    """Weights of no known model type, or of another one than was said."""

    code = "unknown_model_type"


class UnsupportedMethodError(BuildError):
    """A method or blocksize that does not exist."""

    code = "unsupported_method"


class NonFiniteWeightsError(BuildError):
    """NaN or infinity among the weights: a whole block of 64 would be lost with each of them."""

    code = "non_finite_weights"


class InsufficientMemoryError(BuildError):
    """The machine or the GPU had no memory left."""

    code = "insufficient_memory"
    is_retryable = True


class InsufficientDiskError(BuildError):
    """The disk had no room for the artifact."""

    code = "insufficient_disk"
    is_retryable = True


class UnsupportedError(BuildError):
    """A package is missing, or a model has no form in the format that was asked for."""

    code = "unsupported"


ALL = (
    BuildError,
    UnsafeCheckpointError,
    BadCheckpointError,
    ModelTypeError,
    UnsupportedMethodError,
    NonFiniteWeightsError,
    InsufficientMemoryError,
    InsufficientDiskError,
    UnsupportedError,
)
"""Every code the builder can send."""
