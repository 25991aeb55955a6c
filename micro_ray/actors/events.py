"""The actor of events: ``ray.get_actor("events", namespace="micro")``.

A stream over a Ray handle leaves a generator running when its reader goes away, so on the handle
events are fetched; who wants a stream has frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from micro_ray.actors.backends import open_events
from micro_ray.actors.member import Member
from micro_ray.events import DeadLetter, Delivery, Event, Group, Published, Topic
from micro_ray.wire import events as face
from micro_ray.wire.endpoints import Endpoints

__all__ = ["EventsActor"]


class EventsActor(Member):
    service = "events"

    async def open(self) -> Endpoints:
        self.backend = await self._stack.enter_async_context(open_events(self.settings))
        return face.endpoints(self.backend)

    async def publish(self, topic: str, payload: bytes, **options: Any) -> Published:
        return await self.backend.publish(topic, payload, **options)

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

    async def topics(self, **options: Any) -> list[Topic]:
        return await self.backend.topics(**options)

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
