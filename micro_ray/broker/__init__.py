"""broker: messages to whoever listens.

A message is published to a topic and goes to those who are subscribed at that moment. It is fire
and forget: nothing is kept, nobody confirms, and a message that finds nobody is gone. What must not
be lost is an event or a record.

A topic is words separated by dots (``orders.eu.paid``). A subscription's pattern may have ``*`` for
exactly one word and ``>``, as the last, for one or more. Members of a **queue group** share: each
message goes to one of them, whichever of their patterns matched; who is in no group gets its own.

Topics and groups belong to a namespace, and those of two namespaces never meet.

Backends: ``memory.py`` (one process), ``nats.py`` (NATS servers).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Broker", "Limits", "Message", "Subscription"]

DEFAULT = "micro"
#: Limits that are not settings, in bytes or counts.
MAX_TOPIC = 255
MAX_QUEUE = 63
MAX_NAMESPACE = 253
MAX_HEADERS = 64
MAX_HEADER_NAME = 128
MAX_HEADERS_BYTES = 16 * 2**10


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a namespace may do at one member of the broker.

    ``message``: bytes of a body. ``subscriptions``: how many at a time. ``waiting`` messages and
    ``waiting_bytes`` are held for one subscription that does not read, ``namespace_bytes`` for all
    of a namespace.
    """

    message: int = 1_000_000
    subscriptions: int = 1000
    waiting: int = 10_000
    waiting_bytes: int = 8 * 2**20
    namespace_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a subscriber gets. ``dropped`` is how many messages this subscription has lost right
    before this one, because it did not read fast enough."""

    topic: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    dropped: int = 0


class Subscription(abc.ABC):
    """An ``async with`` and an async iterator of messages, for ever, in the order in which one
    publisher has sent them. Entered, it is in force: what is published after that comes.

    One that does not read fast enough loses the oldest of what waits for it, and learns how many
    from the next message (``dropped``).
    """

    async def __aenter__(self) -> Subscription:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __aiter__(self) -> Subscription:
        return self

    @abc.abstractmethod
    async def open(self) -> None:
        """Begin. Raises BadRequest for a topic or group that cannot be, TooManyRequests over the
        namespace's number of subscriptions, Unavailable when the broker cannot be reached."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End; what waits is forgotten. Idempotent."""

    @abc.abstractmethod
    async def __anext__(self) -> Message:
        """The next message. Raises StopAsyncIteration once closed, Unavailable when the broker has
        been closed, BadRequest when two tasks read at once."""


class Broker(abc.ABC):
    """The interface; an ``async with`` that opens and closes it.

    Common to all verbs: BadRequest for topics, groups, headers and namespaces that cannot be;
    TooLarge over a limit, naming it; Unavailable when the broker cannot be reached or is closed.
    """

    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @abc.abstractmethod
    async def close(self) -> None:
        """End all subscriptions; what was published may still be on its way. Idempotent."""

    @abc.abstractmethod
    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        namespace: str = DEFAULT,
    ) -> None:
        """Send a message to whoever is subscribed now. Returning says that it was taken, not that
        it has arrived anywhere.

        Header names are letters, digits, ``-``, ``_`` and ``.``, and do not begin with ``Nats-``
        (servers act on those); values are text without control characters and without blanks at
        their ends.
        """

    @abc.abstractmethod
    def subscribe(self, topic: str, *, queue: str = "", namespace: str = DEFAULT) -> Subscription:
        """A subscription to topics that match a pattern, alone or in a queue group. It begins when
        it is entered. It goes on when the way to the broker breaks and heals; what was published
        meanwhile is lost, and not counted in ``dropped``."""

    @abc.abstractmethod
    async def check(self) -> None:
        """Return when messages can be sent now. Raises Unavailable that says what is waited for."""
