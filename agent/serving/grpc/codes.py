"""What errors are called in gRPC."""

from __future__ import annotations

import grpc

from agent.serving.errors import ExpiredError, HeldTooLongError, ServingError

# By HTTP status, after Triton's own table of the two.
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
# Statuses travel as headers, and clients refuse more than 8 KiB of those.
MAX_DETAIL = 1024


def code_of(error: ServingError) -> grpc.StatusCode:
    """Return the status code; clients try UNAVAILABLE again by themselves, so nothing else may be called that."""
    if isinstance(error, ExpiredError) and not isinstance(error, HeldTooLongError):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return CODES.get(error.status, grpc.StatusCode.INTERNAL)


def detail_of(error: ServingError) -> str:
    """Return the text of a status."""
    return str(error)[:MAX_DETAIL]
