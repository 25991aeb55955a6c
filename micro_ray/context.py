"""Who is calling, in which namespace, until when, under which trace.

One :class:`Context` exists per call being served; :func:`current` gives it to whatever runs under
that call, and the client copies namespace, deadline, trace and request id into calls made from it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

__all__ = ["CURRENT", "DEFAULT_NAMESPACE", "Context", "current", "new_request_id", "use"]

DEFAULT_NAMESPACE = "micro"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What is known of a call.

    ``deadline`` is on the clock of ``time.monotonic()`` in seconds, None when there is none.
    ``trace`` is a W3C ``traceparent`` value or "". ``metadata`` is what the caller sent along,
    keys in lower case. ``peer`` is who is at the other end of the connection: the URI that its
    certificate says, "unix" for who could open our socket, "" for who has proved nothing.
    """

    namespace: str = DEFAULT_NAMESPACE
    caller: str = ""
    service: str = ""
    endpoint: str = ""
    deadline: float | None = None
    trace: str = ""
    request_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""

    def remaining(self) -> float | None:
        """Seconds until the deadline, never below zero; None without a deadline."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - time.monotonic())


#: The one module-level variable of the project: one value per task.
CURRENT: ContextVar[Context | None] = ContextVar("micro_context", default=None)
_NONE = Context()


def current() -> Context:
    """The context of the call being served here, or an empty one outside any call."""
    return CURRENT.get() or _NONE


@contextmanager
def use(context: Context) -> Iterator[Context]:
    """Make ``context`` the current one inside the ``with`` block."""
    token = CURRENT.set(context)
    try:
        yield context
    finally:
        CURRENT.reset(token)


def new_request_id() -> str:
    """A random 128-bit id in hex."""
    return os.urandom(16).hex()
