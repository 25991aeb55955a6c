"""The actor of events: ``ray.get_actor("events", namespace="micro")``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from micro_ray.actors.backends import open_events
from micro_ray.actors.member import Member
from micro_ray.actors.streams import streamed
from micro_ray.events import DeadLetter, Delivery, Event, Group, Published, Topic, Usage
from micro_ray.limits import Kind
from micro_ray.limits.quota_events import QuotaEvents
from micro_ray.wire import events as face
from micro_ray.wire.endpoints import Endpoints

__all__ = ["EventsActor"]


class EventsActor(Member):
    """The verbs of :class:`~micro_ray.events.Events`."""

    service = "events"

    async def open(self) -> Endpoints:
        events = await self._stack.enter_async_context(open_events(self.settings))
        gate = await self.gate(Kind.EVENTS, self.settings.pools.events)
        self.backend = await self._stack.enter_async_context(QuotaEvents(events, gate))
        return face.endpoints(self.backend)

    async def publish(self, topic: str, payload: bytes, **options: Any) -> Published:
        return await self.backend.publish(topic, payload, **options)

    @streamed(ahead=1)  # what is settled must have been taken
    def consume(self, topic: str, group: str = "", **options: Any) -> AsyncIterator[Delivery]:
        """A stream, for ever: end it with ``ray.cancel``, and what it was given and is not settled
        goes to others. With ``auto_ack`` an event is settled once its reader has taken it."""
        return self.backend.consume(topic, group, **options)

    async def fetch(self, topic: str, group: str, **options: Any) -> list[Delivery]:
        return await self.backend.fetch(topic, group, **options)

    async def ack(self, *tokens: str, **options: Any) -> int:
        return await self.backend.ack(*tokens, **options)

    async def nack(self, *tokens: str, **options: Any) -> int:
        return await self.backend.nack(*tokens, **options)

    async def progress(self, *tokens: str, **options: Any) -> int:
        return await self.backend.progress(*tokens, **options)

    async def read(self, topic: str, **options: Any) -> list[Event]:
        return await self.backend.read(topic, **options)

    @streamed()
    def replay(self, topic: str, **options: Any) -> AsyncIterator[Event]:
        """A stream: end it with ``ray.cancel`` when it is not read to its end."""
        return self.backend.replay(topic, **options)

    async def topics(self, **options: Any) -> list[Topic]:
        return await self.backend.topics(**options)

    async def usage(self, **options: Any) -> Usage:
        return await self.backend.usage(**options)

    async def retain(self, topic: str, **options: Any) -> Topic:
        return await self.backend.retain(topic, **options)

    async def delete(self, topic: str, **options: Any) -> bool:
        return await self.backend.delete(topic, **options)

    async def groups(self, topic: str, **options: Any) -> list[Group]:
        return await self.backend.groups(topic, **options)

    async def delete_group(self, topic: str, group: str, **options: Any) -> bool:
        return await self.backend.delete_group(topic, group, **options)

    async def dead(self, topic: str, group: str, **options: Any) -> list[DeadLetter]:
        return await self.backend.dead(topic, group, **options)

    async def requeue(
        self, topic: str, group: str, sequences: Sequence[int] = (), **options: Any
    ) -> int:
        return await self.backend.requeue(topic, group, sequences, **options)

    async def discard(
        self, topic: str, group: str, sequences: Sequence[int] = (), **options: Any
    ) -> int:
        return await self.backend.discard(topic, group, sequences, **options)
