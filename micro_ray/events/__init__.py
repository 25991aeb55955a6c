"""events: streams that are kept, and groups that read them.

A **topic** is a stream of events in the order in which they were taken, numbered from 1 without a
gap; it comes into being with its first event or its first consumer. A **group** reads a topic: each
group gets every event, the members of one share them. An event that a member does not settle is
given again, and after too many times it goes to the group's **dead letters**, from which it can be
requeued.

What is promised:

- A publish is answered when the event is kept: on disk, or as the backend says.
- Each event that was acknowledged to its publisher and is still kept is given to each group at
  least once. It is given again only when it was not settled: its consumer went away, asked for it
  again, or let ``ack_wait`` pass.
- A group is given events in order: a new one never before an older one that waits. With
  ``pending=1`` none is given before the one before it is settled.
- Nothing is dropped for being difficult: what fails too often is a dead letter.

Retention is the exception: what is older than the topic's ``ttl``, or beyond its ``size``, is
removed whether it was consumed or not. Dead letters stay.

Backends: ``sqlite.py`` (WAL, fsync on commit; several processes may share the files) and
``jetstream.py`` (NATS JetStream; flushed by the servers' ``sync_interval``, or kept by several).
"""

from __future__ import annotations

import abc
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from micro_ray.errors import BadRequest, TooLarge

__all__ = [
    "DeadLetter",
    "Delivery",
    "Event",
    "Events",
    "Group",
    "Published",
    "Start",
    "Topic",
    "Usage",
]

DEFAULT = "micro"
#: Limits, in bytes or counts.
MAX_TOPIC = 255
MAX_GROUP = 63
MAX_ID = 128
MAX_PAYLOAD = 768 * 2**10
MAX_METADATA = 64
MAX_METADATA_BYTES = 16 * 2**10
MAX_TOPICS = 10_000
MAX_GROUPS = 1_000
#: Events of a group that are given out and not settled, and those of one consumer.
MAX_PENDING = 10_000
MAX_PREFETCH = 1_000
#: Dead letters of a group. When there are so many, what fails is tried on at the longest pause.
MAX_DEAD = 2_000
MAX_RETRIES = 1_000
#: Seconds.
MAX_ACK_WAIT = 3_600.0
MAX_DELAY = 86_400.0
MAX_WAIT = 60.0
#: Events of one answer, and their bytes: base64 makes 13.4 MiB of it, and a message of frames
#: holds 16.
MAX_EVENTS = 10_000
MAX_ANSWER = 10 * 2**20
MAX_TOKENS = 1_000
#: Longest pause in seconds before an event that failed is given again, unless it is asked for.
MAX_BACKOFF = 60.0
#: Seconds after which a group without a name is forgotten when its consumer is gone.
FORGET = 3_600.0
#: Events that a replay reads at a time, and how many of the largest are one answer.
_PAGE = 500
_LARGEST = 12


class Start(StrEnum):
    """Where a new group begins."""

    NOW = "now"
    BEGINNING = "beginning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """``sequence`` is the event's number in its topic. With ``duplicate`` an event of this id was
    there before, and this is its number."""

    topic: str
    sequence: int
    id: str
    time: float
    duplicate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """``time`` is when it was taken, in seconds since 1970; it never falls within a topic."""

    topic: str
    sequence: int
    id: str
    time: float
    payload: bytes = b""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An event as it is given to one consumer: ``token`` settles it, ``attempt`` counts from 1."""

    event: Event
    token: str
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that a group could not handle: after how many attempts, and when it was given up."""

    event: Event
    attempts: int
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """``first`` and ``last`` are the numbers of what is kept (``first`` is one past ``last`` when
    nothing is), ``size`` the bytes of it (on JetStream with what it keeps beside). ``ttl`` in
    seconds and ``max_size`` in bytes are the retention in force; None is for ever, or any
    amount."""

    name: str
    first: int
    last: int
    events: int
    size: int
    groups: int
    ttl: float | None = None
    max_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """``next`` is the number of the next event that was never given, ``waiting`` how many of those
    there are, ``pending`` how many are given and not settled, ``dead`` its dead letters."""

    topic: str
    name: str
    next: int
    waiting: int
    pending: int
    dead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a namespace keeps: ``bytes`` are the sizes of its topics, ``group_bytes`` those of dead
    letters, on JetStream with all that it keeps for groups. What is no longer kept may be counted
    until it is removed, some seconds later."""

    topics: int = 0
    events: int = 0
    bytes: int = 0
    group_bytes: int = 0


class Events(abc.ABC):
    """The interface; an ``async with`` that opens and closes it.

    Common to all verbs: BadRequest for names and numbers that cannot be; TooLarge for sizes and
    counts over the limits, naming the limit; Unavailable when the backend cannot be written (disk
    full, locked) and nothing was done.
    """

    async def __aenter__(self) -> Events:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @abc.abstractmethod
    async def close(self) -> None:
        """Release what is held, and give back what its consumers hold; they end with
        Unavailable."""

    @abc.abstractmethod
    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        id: str = "",
        expected: int | None = None,
        namespace: str = DEFAULT,
    ) -> Published:
        """Take an event; when this returns it is kept, as the backend says.

        ``id`` makes publishing twice harmless: while the topic keeps an event of this id, no second
        one is taken and the first is told (blank: an id is made). ``expected`` is the number that
        the topic's last event must have (0: it has had none). Raises Conflict when it has
        another."""

    @abc.abstractmethod
    def consume(
        self,
        topic: str,
        group: str = "",
        *,
        start: str = Start.NOW,
        sequence: int = 0,
        since: float | None = None,
        auto_ack: bool = True,
        ack_wait: float = 30.0,
        retry_limit: int = 10,
        backoff: float = 1.0,
        prefetch: int = 32,
        pending: int = 1_000,
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Delivery]:
        """The group's events, for ever; close the iterator to leave. Events that it was given and
        that are not settled then go to others at once.

        A new group begins at ``start``, or at the event number ``sequence``, or at the first event
        taken at or after the time ``since``; one that exists goes on where it is. It exists, with
        the events after it, once the iterator is first asked. Without a name the group is the
        consumer's own, and ends with it.

        With ``auto_ack`` an event is settled when the next is asked for; without, by :meth:`ack`
        within ``ack_wait`` seconds, and a consumer holds at most ``prefetch``, the group
        ``pending`` that are not. ``retry_limit`` is how often an event is given again before it is
        a dead letter (-1: for ever). ``backoff`` is the pause in seconds before the second attempt,
        twice as long each time, a minute at most. These apply to the whole group: the consumer
        that came last sets them.

        Raises NotFound when topic or group is deleted, Unavailable when the backend is closed."""

    @abc.abstractmethod
    async def fetch(
        self,
        topic: str,
        group: str,
        *,
        limit: int = 1,
        wait: float = 0.0,
        start: str = Start.NOW,
        sequence: int = 0,
        since: float | None = None,
        ack_wait: float = 30.0,
        retry_limit: int = 10,
        backoff: float = 1.0,
        pending: int = 1_000,
        namespace: str = DEFAULT,
    ) -> list[Delivery]:
        """Up to ``limit`` of the group's events that are there now, or the first that come within
        ``wait`` seconds; to be settled by :meth:`ack`. Otherwise as :meth:`consume`."""

    @abc.abstractmethod
    async def ack(self, *tokens: str, namespace: str = DEFAULT) -> int:
        """Settle events; how many of them were still held under these tokens. What is not has been
        settled before, or was given again meanwhile."""

    @abc.abstractmethod
    async def nack(self, *tokens: str, delay: float | None = None, namespace: str = DEFAULT) -> int:
        """Give events back: they are given again after ``delay`` seconds (default: the back-off of
        the group), or are dead letters when that was the last attempt. Counts as :meth:`ack`."""

    @abc.abstractmethod
    async def progress(self, *tokens: str, namespace: str = DEFAULT) -> int:
        """Say that events are being worked on: the ``ack_wait`` begins anew. Counts as
        :meth:`ack`."""

    @abc.abstractmethod
    async def read(
        self,
        topic: str,
        *,
        limit: int = 250,
        offset: int = 0,
        sequence: int = 0,
        since: float | None = None,
        until: float | None = None,
        namespace: str = DEFAULT,
    ) -> list[Event]:
        """Events of a topic in order, without any group: from the number ``sequence`` on, taken at
        or after the time ``since`` and before ``until``, leaving out ``offset`` of them. None of a
        topic that is not there. Raises TooLarge when they are over 10 MiB: ask for less."""

    @abc.abstractmethod
    async def topics(self, *, namespace: str = DEFAULT) -> list[Topic]:
        """The topics by name."""

    @abc.abstractmethod
    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        """What the namespace keeps, counted now."""

    @abc.abstractmethod
    async def retain(
        self,
        topic: str,
        *,
        ttl: float | None = None,
        max_size: int | None = None,
        namespace: str = DEFAULT,
    ) -> Topic:
        """Set how long and how much a topic keeps (seconds, bytes of payloads and metadata; None:
        for ever, any amount), over what the settings say; makes the topic if need be."""

    @abc.abstractmethod
    async def delete(self, topic: str, *, namespace: str = DEFAULT) -> bool:
        """Remove a topic with its events, groups and dead letters; whether it was there. A topic of
        that name is then a new one, numbered from 1."""

    @abc.abstractmethod
    async def groups(self, topic: str, *, namespace: str = DEFAULT) -> list[Group]:
        """The groups of a topic by name."""

    @abc.abstractmethod
    async def delete_group(self, topic: str, group: str, *, namespace: str = DEFAULT) -> bool:
        """Remove a group with its dead letters; whether it was there."""

    @abc.abstractmethod
    async def dead(
        self,
        topic: str,
        group: str,
        *,
        limit: int = 100,
        offset: int = 0,
        namespace: str = DEFAULT,
    ) -> list[DeadLetter]:
        """The dead letters of a group by number. Raises TooLarge as :meth:`read`."""

    @abc.abstractmethod
    async def requeue(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = DEFAULT
    ) -> int:
        """Give dead letters (none named: all) to the group again, with all their attempts; how
        many. Raises NotFound for a group that is not there."""

    @abc.abstractmethod
    async def discard(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = DEFAULT
    ) -> int:
        """Remove dead letters (none named: all); how many."""

    # -- in terms of the above -------------------------------------------------------------------

    async def replay(
        self,
        topic: str,
        *,
        sequence: int = 0,
        since: float | None = None,
        until: float | None = None,
        speed: float = 0.0,
        namespace: str = DEFAULT,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> AsyncIterator[Event]:
        """The events of :meth:`read` one by one, up to the last there is: with the pauses there
        were between them divided by ``speed`` (1: as it was, 10: ten times as fast), or without any
        (0). ``sleep`` and ``now`` are the clock."""
        if not 0 <= speed < 10**9:
            raise BadRequest("events", f"speed {speed} is not 0 (no pauses) or above")
        begun = first = None
        limit = _PAGE
        while True:
            try:
                page = await self.read(
                    topic,
                    limit=limit,
                    sequence=sequence,
                    since=since,
                    until=until,
                    namespace=namespace,
                )
            except TooLarge:
                if limit == _LARGEST:
                    raise
                limit = _LARGEST
                continue
            for event in page:
                if speed:
                    if begun is None or first is None:
                        begun, first = now(), event.time
                    ahead = begun + (event.time - first) / speed - now()
                    if ahead > 0:
                        await sleep(ahead)
                yield event
            if not page:
                return
            sequence = page[-1].sequence + 1
