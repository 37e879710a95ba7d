"""What a request can be refused for, and with which status. Values only; nothing here knows HTTP's bytes.

ServingError
  BadRequestError         400  the client's mistake, with the numbers
  UnauthorizedError       401  a token is needed, or is wrong
  ForbiddenError          403  this socket, or this token, does not do that
  NotFoundError           404  no such route, model, version or release
  MethodNotAllowedError   405
  BodyTimeoutError        408  the body did not arrive in time
  TooLargeError           413  a body or its JSON part is over its limit
  UnsupportedEncodingError 415 a Content-Encoding that is not gzip, deflate or identity
  UnavailableError        503  not ready, queue full, or expired in the queue; always with Retry-After
  ModelFailedError        500  the model raised, or answered something that cannot be sent
  LoadFailedError         400, 500 or 507, with a code for the supervisor
"""

from __future__ import annotations

from typing import ClassVar

RETRY_AFTER_S = 1


class ServingError(Exception):
    """A request that gets an answer other than 200.

    Attributes:
        status: the HTTP status; gRPC maps it to its own codes.
        outcome: what the request counts as in the metrics.
        is_unread: whether the client may still be sending the body that was refused.
    """

    status = 500
    outcome = "failed"
    is_unread = False


class BadRequestError(ServingError):
    """The client has to change the request."""

    status = 400
    outcome = "invalid"


class UnauthorizedError(ServingError):
    """The request needs a token.

    Attributes:
        is_wrong: whether it brought one.
    """

    status = 401
    outcome = "invalid"
    is_unread = True

    def __init__(self, detail: str, *, is_wrong: bool = False) -> None:
        super().__init__(detail)
        self.is_wrong = is_wrong


class ForbiddenError(ServingError):
    """What is asked for exists, and is not done for whoever asks here."""

    status = 403
    outcome = "invalid"


class WeakTokenError(ForbiddenError):
    """The token is known, and not good for this."""

    is_unread = True


class NotFoundError(ServingError):
    """There is nothing of that name."""

    status = 404
    outcome = "invalid"


class MethodNotAllowedError(ServingError):
    """The route exists, the verb does not.

    Attributes:
        allow: the verbs that do.
    """

    status = 405
    outcome = "invalid"

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__(f"{method} is not allowed on {path}, use {allow}")
        self.allow = "GET, HEAD" if allow == "GET" else allow


class BodyTimeoutError(ServingError):
    """The body came too slowly."""

    status = 408
    outcome = "invalid"
    is_unread = True


class TooLargeError(ServingError):
    """More bytes than this server reads."""

    status = 413
    outcome = "invalid"

    def __init__(self, detail: str, *, is_unread: bool = False) -> None:
        super().__init__(detail)
        self.is_unread = is_unread


class UnsupportedEncodingError(ServingError):
    """A compression that this server does not know."""

    status = 415
    outcome = "invalid"
    is_unread = True


class UnavailableError(ServingError):
    """Trying again later can help."""

    status = 503
    outcome = "rejected"


class ExpiredError(UnavailableError):
    """The request's own ``timeout`` passed while it waited."""

    outcome = "expired"


class HeldTooLongError(ExpiredError):
    """The server's own limit for the wait passed, not the request's."""


class ModelFailedError(ServingError):
    """The model raised while it computed, or its answer has no JSON form."""


class LoadFailedError(ServingError):
    """A release could not be loaded.

    Attributes:
        code: ``bad_artifact``, ``insufficient_memory`` or ``internal``.
    """

    STATUS: ClassVar[dict[str, int]] = {"bad_artifact": 400, "insufficient_memory": 507, "internal": 500}

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.status = self.STATUS[code]
