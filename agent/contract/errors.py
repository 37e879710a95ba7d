"""Error codes and the error object that reports carry.

An error is a value here: it says what failed with the numbers in it (``detail``), what to do next (``hint``), what
still serves (``kept``), where it happened (``phase``) and whether trying again can help (``retryable``).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator

from agent.contract.enums import StrEnum

MAX_TEXT = 2000
"""Characters of a detail or a hint: both may quote what was sent, and the report has to stay below 64 KiB."""


class ErrorCode(StrEnum):
    """Every code that a report can carry. Codes are stable; texts are not."""

    BAD_REQUEST = "bad_request"
    ID_CONFLICT = "id_conflict"
    RETAINED_COMMAND = "retained_command"
    BAD_SIGNATURE = "bad_signature"
    UNTRUSTED_KEY = "untrusted_key"
    WRONG_AUDIENCE = "wrong_audience"
    STALE_SEQUENCE = "stale_sequence"
    STALE_GENERATION = "stale_generation"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    UNSUPPORTED_COMMAND = "unsupported_command"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_MODEL_TYPE = "unknown_model_type"
    UNKNOWN_OPERATION = "unknown_operation"
    NOT_CANCELABLE = "not_cancelable"
    UNSUPPORTED_METHOD = "unsupported_method"
    INSUFFICIENT_MEMORY = "insufficient_memory"
    INSUFFICIENT_DISK = "insufficient_disk"
    FORBIDDEN_SOURCE = "forbidden_source"
    DOWNLOAD_FAILED = "download_failed"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    UNSAFE_CHECKPOINT = "unsafe_checkpoint"
    BAD_CHECKPOINT = "bad_checkpoint"
    NON_FINITE_WEIGHTS = "non_finite_weights"
    BUILD_KILLED = "build_killed"
    GATE_FAILED = "gate_failed"
    LOAD_FAILED = "load_failed"
    CANARY_FAILED = "canary_failed"
    ACTIVATION_FAILED = "activation_failed"
    TRIAL_FAILED = "trial_failed"
    NOTHING_TO_ROLL_BACK = "nothing_to_roll_back"
    INTERRUPTED = "interrupted"
    STATE_LOST = "state_lost"
    CANCELED = "canceled"
    SUPERSEDED = "superseded"
    TIMED_OUT = "timed_out"
    BUSY = "busy"
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal"


class ErrorInfo(BaseModel):
    """The ``error`` object of an operation report."""

    model_config = ConfigDict(frozen=True)

    code: ErrorCode
    detail: str
    hint: str | None = None
    kept: str | None = None
    phase: str | None = None
    retryable: bool = False

    @field_validator("detail", "hint")
    @classmethod
    def _clip(cls, text: str | None) -> str | None:
        return text if text is None or len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


class RefusalError(Exception):
    """A command or manifest that is not acted on; becomes an operation in state ``rejected`` or ``expired``.

    Attributes:
        code: why.
        detail: one sentence with the numbers.
        hint: the next step, or None.
        operation_id: the id of the refused command where one could be read, else None.
    """

    def __init__(self, code: ErrorCode, detail: str, hint: str | None = None, operation_id: str | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.hint = hint
        self.operation_id = operation_id

    def info(self) -> ErrorInfo:
        """Return the error object for the report: a refusal is never retryable as it stands."""
        return ErrorInfo(code=self.code, detail=self.detail, hint=self.hint)
