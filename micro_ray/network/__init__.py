"""network: service to service.

:class:`Network` (in ``network.py``) is what everything that calls uses: the doors, the SDK client
and platform actors. It looks a service up in a watched :class:`~micro_ray.router.table.Table`,
chooses a node, keeps pooled multiplexed connections to nodes, retries on another node when the
call was surely not executed, ejects nodes that fail. It reaches nodes by a :class:`Dialer`, which
the ``wire`` room implements: no transport is known here.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from micro_ray.errors import BadGateway, Timeout, Unavailable

__all__ = ["Broken", "Call", "Credentials", "Dialer", "Peer", "Refused", "Silent", "Stream"]


#: The metadata by which a caller is known to a service, by its namespace and name.
Credentials = Callable[[str, str], Mapping[str, str]]


class Refused(Unavailable):
    """Nobody took the call: surely nothing of it was executed, so any call may go elsewhere."""


class Broken(BadGateway):
    """The connection broke with the call under way: it was executed, or not, or in part."""


class Silent(Timeout):
    """No answer came before the deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The head of a call. ``timeout`` is in seconds from now (None: no deadline). ``content`` is
    the media type of the bodies, passed on untouched. ``metadata`` keys are lower case; well-known
    ones: ``micro-namespace``, ``micro-caller``, ``traceparent``, ``x-request-id``."""

    service: str
    endpoint: str
    timeout: float | None = None
    content: str = "application/json"
    metadata: Mapping[str, str] = field(default_factory=dict)


class Stream(abc.ABC):
    """Both directions of one streaming call. Leaving ``async with`` cancels what is unfinished."""

    @abc.abstractmethod
    async def send(self, message: bytes) -> None:
        """Send one message; waits while the receiver's credit is used up. Raises the call's
        error once it has ended."""

    @abc.abstractmethod
    async def end(self) -> None:
        """No more messages from this side."""

    @abc.abstractmethod
    async def receive(self) -> bytes | None:
        """The next message, None at the end of the answer. Raises the call's error."""

    @abc.abstractmethod
    def cancel(self) -> None:
        """Give the call up; the peer is told. Idempotent."""

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.receive()) is not None:
            yield message


class Peer(abc.ABC):
    """One connection to one node.

    What went wrong on the way is Refused, Broken or Silent. Every other error is the service's own
    answer, also when its code is that of one of the three: a service that raises Unavailable has
    been executed.
    """

    #: True once no further call may be started here (closed, broken or draining).
    closed: bool
    #: Calls started and not ended.
    in_flight: int

    @abc.abstractmethod
    async def call(self, call: Call, body: bytes) -> bytes:
        """One message there, one back. Raises Silent at ``call.timeout``; cancelling the task
        cancels the call at the node."""

    @abc.abstractmethod
    async def open(self, call: Call) -> Stream:
        """Start a streaming call of any kind."""

    @abc.abstractmethod
    async def wait_closed(self) -> None:
        """Return when the connection has ended, for whatever reason."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Close now; calls in flight end with Cancelled."""


class Dialer(abc.ABC):
    """Makes connections."""

    @abc.abstractmethod
    async def dial(
        self, address: str, *, timeout: float, service: str = "", namespace: str = ""
    ) -> Peer:
        """Connect and shake hands. Where nodes prove who they are, the one at the other end must be
        of the ``service`` and ``namespace`` ("": any). Raises Refused when that fails or takes
        longer than ``timeout`` seconds, BadRequest for an address it cannot read."""
