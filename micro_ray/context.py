"""Who is calling, in which namespace, until when, under which trace.

One :class:`Context` exists per call being served; :func:`current` gives it to whatever runs under
that call, and the client copies namespace, deadline, trace and request id into calls made from it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "AUTHORIZATION",
    "CURRENT",
    "DEFAULT_NAMESPACE",
    "Context",
    "current",
    "new_request_id",
    "use",
]

DEFAULT_NAMESPACE = "micro"
#: The metadata of a call that says who makes it.
AUTHORIZATION = "authorization"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What is known of a call.

    ``deadline`` is on the clock of ``time.monotonic()`` in seconds, None when there is none.
    ``trace`` is a W3C ``traceparent`` value or "". ``metadata`` is what the caller sent along,
    keys in lower case. ``peer`` is who is at the other end of the connection: the URI that its
    certificate says, "unix" for who could open our socket, "" for who has proved nothing.

    ``caller`` is the id of the account that calls, as it was verified ("": nobody, or nobody asks),
    and ``identity`` all that is known of it (:class:`micro_ray.auth.Identity`). ``reach`` raises
    Forbidden when the call may not be about another namespace too; None: nothing is asked.
    ``trusted`` says that a process of the platform makes the call, for whomever.
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
    identity: Any = None
    trusted: bool = True
    reach: Callable[[str], None] | None = None

    def remaining(self) -> float | None:
        """Seconds until the deadline, never below zero; None without a deadline."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - time.monotonic())

    @property
    def whose(self) -> str | None:
        """The namespace whose things alone the caller may see ("": nobody's, which is what all may
        see); None for who acts in every namespace, and where nothing is asked."""
        if self.reach is None or (self.identity is not None and self.identity.everywhere):
            return None
        return "" if self.identity is None else str(self.identity.namespace)

    @property
    def entrusted(self) -> bool:
        """Whether what is secret in the namespace of the call is the caller's to know: he acts in
        every namespace, administers this one, or runs in it."""
        if self.whose is None:
            return True
        who = self.identity
        return who is not None and who.namespace == self.namespace and bool(who.entrusted)

    def within(self, namespace: str) -> str:
        """The namespace that a verb is about: the one that is asked for, or that of the call.
        ``*`` is every one. Raises Forbidden where the caller may not be."""
        if not namespace or namespace == self.namespace:
            return self.namespace
        if self.reach is not None:
            self.reach(namespace)
        return namespace


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
