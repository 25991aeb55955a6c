"""The face of events on frames; the interface over a caller is in ``remote_events.py``.

``Events.Consume`` is a stream of deliveries; they are settled by ``Events.Ack``, ``Nack`` and
``Progress``, which are calls of their own and may go to any node: so it works the same for frames,
Server-Sent Events and newline-delimited JSON. When the stream breaks, what it gave and is not
settled is given again at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from micro_ray.context import current
from micro_ray.events import Events, Published, Topic, Usage
from micro_ray.wire.closing import closing
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.event_records import (
    Consume,
    Fetch,
    WireDelivery,
    WireEvent,
    payload_of,
    to_delivery,
    to_event,
    to_letter,
)
from micro_ray.wire.own import of_audit
from micro_ray.wire.remote_events import RemoteEvents

__all__ = ["RemoteEvents", "endpoints"]

NAME = "events"


class _Face:
    """The endpoints as methods; the namespace is the caller's."""

    def __init__(self, events: Events) -> None:
        self._events = events

    async def publish(
        self,
        topic: str,
        payload: Any = "",
        encoding: str = "text",
        metadata: dict[str, str] = {},  # noqa: B006 - copied by the struct, never changed
        id: str = "",
        expected: int | None = None,
    ) -> Published:
        """Take an event; when this is answered it is on disk. With an id once, with expected only
        after that event."""
        of_audit(topic, written=True)
        return await self._events.publish(
            topic,
            payload_of(payload, encoding),
            metadata=metadata,
            id=id,
            expected=expected,
            namespace=current().namespace,
        )

    async def consume(self, request: Consume) -> AsyncIterator[WireDelivery]:
        """The events of a group, for ever. With auto_ack they are settled as they are sent, else
        by Events.Ack with their token."""
        of_audit(request.topic)
        options = {name: getattr(request, name) for name in Consume.__slots__}
        taken = self._events.consume(**options, namespace=current().namespace)
        async with closing(taken) as deliveries:
            async for delivery in deliveries:
                yield to_delivery(delivery)

    async def fetch(self, request: Fetch) -> dict[str, Any]:
        """Events of a group that are there now, or come within wait seconds."""
        of_audit(request.topic)
        options = {name: getattr(request, name) for name in Fetch.__slots__}
        found = await self._events.fetch(**options, namespace=current().namespace)
        return {"events": [to_delivery(delivery) for delivery in found]}

    async def ack(self, tokens: list[str]) -> dict[str, Any]:
        """Settle events by their tokens; how many were still held."""
        return {"count": await self._events.ack(*tokens, namespace=current().namespace)}

    async def nack(self, tokens: list[str], delay: float | None = None) -> dict[str, Any]:
        """Give events back, to be given again after delay seconds (default: the back-off)."""
        space = current().namespace
        return {"count": await self._events.nack(*tokens, delay=delay, namespace=space)}

    async def progress(self, tokens: list[str]) -> dict[str, Any]:
        """Say that events are being worked on: their ack_wait begins anew."""
        return {"count": await self._events.progress(*tokens, namespace=current().namespace)}

    async def read(
        self,
        topic: str,
        limit: int = 250,
        offset: int = 0,
        sequence: int = 0,
        since: float | None = None,
        until: float | None = None,
    ) -> dict[str, Any]:
        """Events of a topic, without any group."""
        of_audit(topic)
        found = await self._events.read(
            topic,
            limit=limit,
            offset=offset,
            sequence=sequence,
            since=since,
            until=until,
            namespace=current().namespace,
        )
        return {"events": [to_event(event) for event in found]}

    async def replay(
        self,
        topic: str,
        sequence: int = 0,
        since: float | None = None,
        until: float | None = None,
        speed: float = 0.0,
    ) -> AsyncIterator[WireEvent]:
        """Events of a topic one by one, with the pauses there were divided by speed (0: none)."""
        of_audit(topic)
        told = self._events.replay(
            topic,
            sequence=sequence,
            since=since,
            until=until,
            speed=speed,
            namespace=current().namespace,
        )
        async with closing(told) as events:
            async for event in events:
                yield to_event(event)

    async def topics(self) -> dict[str, Any]:
        """The topics of the namespace."""
        return {"topics": await self._events.topics(namespace=current().namespace)}

    async def usage(self) -> Usage:
        """What the namespace keeps, counted now."""
        return await self._events.usage(namespace=current().namespace)

    async def retain(
        self, topic: str, ttl: float | None = None, max_size: int | None = None
    ) -> Topic:
        """Set how long (seconds) and how much (bytes) a topic keeps."""
        of_audit(topic, written=True)
        return await self._events.retain(
            topic, ttl=ttl, max_size=max_size, namespace=current().namespace
        )

    async def delete(self, topic: str) -> dict[str, Any]:
        """Remove a topic with all that is of it."""
        of_audit(topic, written=True)
        return {"deleted": await self._events.delete(topic, namespace=current().namespace)}

    async def groups(self, topic: str) -> dict[str, Any]:
        """The groups of a topic."""
        of_audit(topic)
        return {"groups": await self._events.groups(topic, namespace=current().namespace)}

    async def delete_group(self, topic: str, group: str) -> dict[str, Any]:
        """Remove a group with its dead letters."""
        of_audit(topic)
        space = current().namespace
        return {"deleted": await self._events.delete_group(topic, group, namespace=space)}

    async def dead(
        self, topic: str, group: str, limit: int = 100, offset: int = 0
    ) -> dict[str, Any]:
        """The dead letters of a group."""
        of_audit(topic)
        found = await self._events.dead(
            topic, group, limit=limit, offset=offset, namespace=current().namespace
        )
        return {"events": [to_letter(letter) for letter in found]}

    async def requeue(
        self,
        topic: str,
        group: str,
        sequences: list[int] = [],  # noqa: B006 - copied by the struct, never changed
    ) -> dict[str, Any]:
        """Give dead letters (none named: all) to their group again."""
        of_audit(topic)
        space = current().namespace
        return {"count": await self._events.requeue(topic, group, sequences, namespace=space)}

    async def discard(
        self,
        topic: str,
        group: str,
        sequences: list[int] = [],  # noqa: B006 - copied by the struct, never changed
    ) -> dict[str, Any]:
        """Remove dead letters (none named: all)."""
        of_audit(topic)
        space = current().namespace
        return {"count": await self._events.discard(topic, group, sequences, namespace=space)}


def endpoints(events: Events) -> Endpoints:
    """Service ``events``."""
    face, table = _Face(events), Endpoints(NAME)
    for name in (
        "publish", "consume", "fetch", "ack", "nack", "progress", "read", "replay", "topics",
        "usage", "retain", "delete", "groups", "dead", "requeue", "discard",
    ):  # fmt: skip
        table.add(f"Events.{name.title()}", getattr(face, name))
    return table.add("Events.DeleteGroup", face.delete_group)
