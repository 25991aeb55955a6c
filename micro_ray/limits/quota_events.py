"""Events of which a namespace may keep so much, publish so many, and no more.

``tally.py`` counts what is kept, ``meter.py`` what is published. What would make a topic is refused
as a publish is: a topic comes into being also with its first consumer, and each costs. Nothing else
is refused: to read, to settle, to delete and to requeue always goes. A namespace without a quota
and a rate costs two looks into a dictionary.

An event that is there already takes no room: a publish for which there is none is told of it as
ever. What the platform itself publishes (what was done to accounts, rules and keys) is counted and
not refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

from micro_ray.errors import Conflict, TooLarge
from micro_ray.events import (
    DEFAULT,
    DeadLetter,
    Delivery,
    Event,
    Events,
    Group,
    Published,
    Topic,
    Usage,
    checks,
)
from micro_ray.finding import Examined, Finding
from micro_ray.limits import EventQuota, Kind
from micro_ray.limits.gate import Gate
from micro_ray.limits.meter import Meter, platform_itself
from micro_ray.limits.tally import AGAIN, Amounts, Taken, Tallies

__all__ = ["QuotaEvents"]

#: The number that no topic's last event has.
_NEVER = 2**63 - 1


@dataclass(slots=True)
class _Listed:
    """The topics of a namespace that were there when they were listed, or since."""

    names: set[str] = field(default_factory=set)
    at: float = float("-inf")
    listing: asyncio.Lock = field(default_factory=asyncio.Lock)


class QuotaEvents(Events):
    """``events`` are their owner's to open and close; ``gate`` knows the quotas, and keeps limits
    of the kind EVENTS. An ``async with``, for the counts that are under way."""

    def __init__(
        self, events: Events, gate: Gate, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._events = events
        self._gate = gate
        self._clock = clock
        self._meter = Meter(gate, Kind.EVENTS)
        self._listed: dict[str, _Listed] = {}
        self._tallies = Tallies(
            "events",
            ("bytes", "events", "topics"),
            self._count,
            where="in events",
            remedy="delete topics, have them keep less (events retain)",
            clock=clock,
        )

    async def examine(self) -> list[Finding]:
        """What the backend itself finds."""
        return await self._events.examine() if isinstance(self._events, Examined) else []

    async def close(self) -> None:
        """End the counts."""
        await self._tallies.close()

    async def _count(self, namespace: str) -> Amounts:
        found = await self._events.usage(namespace=namespace)
        return found.bytes + found.group_bytes, found.events, found.topics

    # -- what takes room ---------------------------------------------------------------------------

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
        async def publish(expected: int | None) -> Published:
            return await self._events.publish(
                topic, payload, metadata=metadata, id=id, expected=expected, namespace=namespace
            )

        await self._meter.enter(namespace)
        quota = self._gate.rules(namespace).events
        if quota is None:
            return await publish(expected)
        size = checks.publish(topic, payload, metadata or {}, id, expected)
        try:
            taken = await self._room(namespace, quota, topic, size, 1)
        except TooLarge:
            if not id or not await self._events.read(topic, limit=1, namespace=namespace):
                raise
            try:
                return await publish(_NEVER)
            except Conflict:
                pass
            raise
        with taken:
            done = await publish(expected)
        self._there(namespace, topic)
        return done

    async def _room(
        self, namespace: str, quota: EventQuota, topic: str, size: int, events: int
    ) -> Taken:
        """Room for so much more of a topic. Raises TooLarge."""
        new = bool(quota.topics) and await self._is_new(namespace, topic)
        more = size, events, int(new)
        if platform_itself():
            return await self._tallies.take(namespace, (0, 0, 0), more)
        most = quota.bytes, quota.events, quota.topics
        return await self._tallies.take(namespace, most, more)

    async def _is_new(self, namespace: str, topic: str) -> bool:
        """Whether there is no topic of this name. One that was made elsewhere is seen within a
        second; one that was deleted elsewhere may be taken to be there."""
        listed = self._listed.setdefault(namespace, _Listed())
        if topic in listed.names:
            return False
        async with listed.listing:
            if topic not in listed.names and self._clock() >= listed.at + AGAIN:
                listed.at = self._clock()
                found = await self._events.topics(namespace=namespace)
                listed.names = {row.name for row in found}
        return topic not in listed.names

    def _there(self, namespace: str, topic: str) -> None:
        listed = self._listed.get(namespace)
        if listed is not None:
            listed.names.add(topic)

    async def _enter(self, topic: str, namespace: str) -> AbstractContextManager[object]:
        """Room for a topic, where it would be made. Raises TooLarge."""
        checks.topic(topic)
        quota = self._gate.rules(namespace).events
        if quota is None or not quota.topics or not await self._is_new(namespace, topic):
            return contextlib.nullcontext()
        return await self._room(namespace, quota, topic, 0, 0)

    async def consume(
        self, topic: str, group: str = "", *, namespace: str = DEFAULT, **options: Any
    ) -> AsyncIterator[Delivery]:
        with await self._enter(topic, namespace):
            # It is made once the first event is waited for, which may be for ever.
            self._there(namespace, topic)
        consumed = self._events.consume(topic, group, namespace=namespace, **options)
        async with contextlib.aclosing(cast("AsyncGenerator[Delivery, None]", consumed)) as given:
            async for delivery in given:
                yield delivery

    async def fetch(
        self, topic: str, group: str, *, namespace: str = DEFAULT, **options: Any
    ) -> list[Delivery]:
        with await self._enter(topic, namespace):
            found = await self._events.fetch(topic, group, namespace=namespace, **options)
        self._there(namespace, topic)
        return found

    async def retain(self, topic: str, *, namespace: str = DEFAULT, **options: Any) -> Topic:
        with await self._enter(topic, namespace):
            kept = await self._events.retain(topic, namespace=namespace, **options)
        self._there(namespace, topic)
        return kept

    async def delete(self, topic: str, *, namespace: str = DEFAULT) -> bool:
        listed = self._listed.get(namespace)
        if listed is not None:
            listed.names.discard(topic)
        return await self._events.delete(topic, namespace=namespace)

    # -- the rest is that of events ----------------------------------------------------------------

    async def ack(self, *tokens: str, namespace: str = DEFAULT) -> int:
        return await self._events.ack(*tokens, namespace=namespace)

    async def nack(self, *tokens: str, delay: float | None = None, namespace: str = DEFAULT) -> int:
        return await self._events.nack(*tokens, delay=delay, namespace=namespace)

    async def progress(self, *tokens: str, namespace: str = DEFAULT) -> int:
        return await self._events.progress(*tokens, namespace=namespace)

    async def read(self, topic: str, **options: Any) -> list[Event]:
        return await self._events.read(topic, **options)

    async def topics(self, *, namespace: str = DEFAULT) -> list[Topic]:
        return await self._events.topics(namespace=namespace)

    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        return await self._events.usage(namespace=namespace)

    async def groups(self, topic: str, *, namespace: str = DEFAULT) -> list[Group]:
        return await self._events.groups(topic, namespace=namespace)

    async def delete_group(self, topic: str, group: str, *, namespace: str = DEFAULT) -> bool:
        return await self._events.delete_group(topic, group, namespace=namespace)

    async def dead(self, topic: str, group: str, **options: Any) -> list[DeadLetter]:
        return await self._events.dead(topic, group, **options)

    async def requeue(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = DEFAULT
    ) -> int:
        return await self._events.requeue(topic, group, sequences, namespace=namespace)

    async def discard(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = DEFAULT
    ) -> int:
        return await self._events.discard(topic, group, sequences, namespace=namespace)
