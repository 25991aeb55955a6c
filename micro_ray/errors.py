"""The tree of errors: every failure a caller may see, in one shape ``{id, code, detail, status}``.

``code`` is an HTTP status. One table maps it to the gRPC status. The fields are the exception's
``args``, so that an error survives pickling (Ray), frames and HTTP with its type and fields; the
sentence a person reads is made in ``__str__``.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

__all__ = [
    "CODES",
    "BadGateway",
    "BadRequest",
    "Cancelled",
    "Conflict",
    "Forbidden",
    "GatewayTimeout",
    "HeadersTooLarge",
    "InternalError",
    "MethodNotAllowed",
    "MicroError",
    "NotFound",
    "NotImplementedByService",
    "PreconditionFailed",
    "Timeout",
    "TooLarge",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMedia",
    "from_dict",
    "make",
]

#: Longest ``detail`` that crosses a wire, in characters; longer ones are cut with an ellipsis.
MAX_DETAIL = 16_384
#: Longest ``id`` and largest ``retry_after`` (seconds) that are taken from a wire.
MAX_ID, MAX_RETRY_AFTER = 512, 30 * 86_400


class MicroError(Exception):
    """A failure with its fields: ``id`` (who says so), ``detail`` (what was wrong and what to do).

    ``retry_after`` is in seconds, for errors after which the same call may succeed. Raising the
    base class is for codes without a class of their own: use :func:`make`.
    """

    code: ClassVar[int] = 500
    grpc: ClassVar[str] = "UNKNOWN"

    def __init__(self, id: str, detail: str, retry_after: float | None = None) -> None:
        if len(detail) > MAX_DETAIL:
            detail = detail[: MAX_DETAIL - 1] + "…"
        super().__init__(id, detail, retry_after)
        # Plain attributes, not properties over args: Ray hands a caller a class derived from this
        # one whose args differ, and which forwards only what it does not find.
        self.id = id
        self.detail = detail
        self.retry_after = retry_after

    @property
    def status(self) -> str:
        """The reason phrase of the code, as HTTP spells it."""
        if self.code == 499:
            return "Client Closed Request"
        try:
            return HTTPStatus(self.code).phrase
        except ValueError:
            return "Unknown"

    def __str__(self) -> str:
        return f"{self.id}: {self.detail}" if self.id else self.detail

    def to_dict(self) -> dict[str, Any]:
        """The form that crosses every wire; ``retry_after`` only when there is one."""
        form: dict[str, Any] = {
            "id": self.id,
            "code": self.code,
            "detail": self.detail,
            "status": self.status,
        }
        if self.retry_after is not None:
            form["retry_after"] = self.retry_after
        return form


class BadRequest(MicroError):
    """The input is wrong; the detail names the field."""

    code, grpc = 400, "INVALID_ARGUMENT"


class Unauthorized(MicroError):
    """No credential, or one that does not hold."""

    code, grpc = 401, "UNAUTHENTICATED"


class Forbidden(MicroError):
    """A known caller without the right."""

    code, grpc = 403, "PERMISSION_DENIED"


class NotFound(MicroError):
    """The service, endpoint, record or workload is not there; the detail says what is near."""

    code, grpc = 404, "NOT_FOUND"


class MethodNotAllowed(MicroError):
    """The path exists, but not for this HTTP method."""

    code, grpc = 405, "UNIMPLEMENTED"


class Timeout(MicroError):
    """The deadline passed; the work may or may not have been done."""

    code, grpc = 408, "DEADLINE_EXCEEDED"


class Conflict(MicroError):
    """It exists already, or changed meanwhile (compare-and-set)."""

    code, grpc = 409, "ABORTED"


class PreconditionFailed(MicroError):
    """The state does not allow the verb."""

    code, grpc = 412, "FAILED_PRECONDITION"


class TooLarge(MicroError):
    """A size, depth or count is over its limit; the detail names the limit."""

    code, grpc = 413, "OUT_OF_RANGE"


class UnsupportedMedia(MicroError):
    """A content type nobody here reads."""

    code, grpc = 415, "INVALID_ARGUMENT"


class TooManyRequests(MicroError):
    """A rate, quota or concurrency limit; ``retry_after`` says when to come again."""

    code, grpc = 429, "RESOURCE_EXHAUSTED"


class HeadersTooLarge(MicroError):
    """The head of a request is over its limit."""

    code, grpc = 431, "RESOURCE_EXHAUSTED"


class Cancelled(MicroError):
    """The caller went away or gave up."""

    code, grpc = 499, "CANCELLED"


class InternalError(MicroError):
    """The service raised something that was not a MicroError."""

    code, grpc = 500, "INTERNAL"


class NotImplementedByService(MicroError):
    """The verb is known but this backend or service does not have it."""

    code, grpc = 501, "UNIMPLEMENTED"


class BadGateway(MicroError):
    """The node answered garbage, or died after it had taken the call."""

    code, grpc = 502, "UNAVAILABLE"


class Unavailable(MicroError):
    """Nobody could take the call; nothing was executed, trying again is safe."""

    code, grpc = 503, "UNAVAILABLE"


class GatewayTimeout(MicroError):
    """A node could not be reached in time."""

    code, grpc = 504, "DEADLINE_EXCEEDED"


#: code -> class, the only such table.
CODES: Mapping[int, type[MicroError]] = {cls.code: cls for cls in MicroError.__subclasses__()}


def make(code: int, id: str, detail: str, retry_after: float | None = None) -> MicroError:
    """The error of a code; codes without a class (user services choose freely) become the nearest
    class of their hundred: 4xx BadRequest, everything else InternalError."""
    cls = CODES.get(code)
    if cls is None:
        cls = BadRequest if 400 <= code < 500 else InternalError
    return cls(id, detail, retry_after)


def from_dict(form: Mapping[str, Any]) -> MicroError:
    """The inverse of :meth:`MicroError.to_dict`; never raises, whatever a peer sent: what is of the
    wrong type or beyond measure counts as not said."""
    code, id, detail = form.get("code"), form.get("id"), form.get("detail")
    retry = form.get("retry_after")
    usable = isinstance(retry, int | float) and 0 <= retry <= MAX_RETRY_AFTER
    return make(
        code if isinstance(code, int) else 500,
        id[:MAX_ID] if isinstance(id, str) else "",
        detail if isinstance(detail, str) else "",
        float(retry) if usable and retry is not None else None,
    )
