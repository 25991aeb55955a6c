"""The interface of events over a caller."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from micro_ray.errors import MicroError, Unauthorized
from micro_ray.events import (
    DEFAULT,
    DeadLetter,
    Delivery,
    Event,
    Events,
    Group,
    Published,
    Start,
    Topic,
    Usage,
)
from micro_ray.wire.event_records import (
    Consume,
    WireDeadLetter,
    WireDelivery,
    WireEvent,
    from_delivery,
    from_event,
    from_letter,
)
from micro_ray.wire.remote import LIVED, Caller, from_json, to_json
from micro_ray.wire.store_records import to_text

__all__ = ["RemoteEvents"]

NAME = "events"


class _Acks:
    """Settles events one call after the other, each with all that came meanwhile."""

    def __init__(self, events: RemoteEvents, namespace: str) -> None:
        self._events = events
        self._namespace = namespace
        self._waiting: list[str] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, token: str) -> None:
        """Raises what the call before raised."""
        self._waiting.append(token)
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            await task
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._waiting:
            tokens = self._waiting[:500]
            await self._events.ack(*tokens, namespace=self._namespace)
            del self._waiting[: len(tokens)]

    async def close(self) -> None:
        """Settle the rest; what cannot be is given again."""
        if self._task is not None:
            with contextlib.suppress(MicroError):
                await self._task


class RemoteEvents(Events):
    """The interface over a caller. A publish has an id in any case, so it may be tried again on
    another node and is taken once. A consumer whose node dies is told by the error of its
    stream; consuming again goes on with the group."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def _call(
        self, endpoint: str, request: Mapping[str, Any], namespace: str, *, safe: bool = False
    ) -> bytes:
        return await self._caller.call(
            NAME,
            f"Events.{endpoint}",
            to_json(request),
            metadata={"micro-namespace": namespace},
            idempotent=safe,
        )

    async def close(self) -> None:
        """The caller is not ours."""

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
        text, encoding = to_text(payload)
        made = "" if id else os.urandom(16).hex()
        request = {
            "topic": topic,
            "payload": text,
            "encoding": encoding,
            "metadata": dict(metadata or {}),
            "id": id or made,
            "expected": expected,
        }
        body = await self._call("Publish", request, namespace, safe=True)
        taken = from_json(body, Published, NAME)
        return replace(taken, duplicate=False) if made else taken

    async def consume(
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
        # Settled from here also with auto_ack: what is on its way when a process ends is not lost.
        request = Consume(
            topic=topic,
            group=group,
            start=start,
            sequence=sequence,
            since=since,
            auto_ack=False,
            ack_wait=ack_wait,
            retry_limit=retry_limit,
            backoff=backoff,
            prefetch=prefetch,
            pending=pending,
        )
        acks = _Acks(self, namespace)
        try:
            while True:
                begun = time.monotonic()
                try:
                    async with contextlib.aclosing(self._given(request, namespace)) as given:
                        async for delivery in given:
                            yield delivery
                            if auto_ack:
                                await acks.add(delivery.token)
                            if not group:  # nobody else knows where it is
                                onward = delivery.event.sequence + 1
                                request = replace(request, sequence=onward, since=None)
                    return
                except Unauthorized:
                    if time.monotonic() < begun + LIVED:
                        raise  # the stream before ended with its token, and there is no other
        finally:
            await acks.close()

    async def _given(self, request: Consume, namespace: str) -> AsyncGenerator[Delivery, None]:
        """What one stream gives."""
        metadata = {"micro-namespace": namespace}
        async with await self._caller.open(NAME, "Events.Consume", metadata=metadata) as stream:
            await stream.send(to_json(request))
            await stream.end()
            while (message := await stream.receive()) is not None:
                yield from_delivery(from_json(message, WireDelivery, NAME))

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
        request = {
            "topic": topic,
            "group": group,
            "limit": limit,
            "wait": wait,
            "start": start,
            "sequence": sequence,
            "since": since,
            "ack_wait": ack_wait,
            "retry_limit": retry_limit,
            "backoff": backoff,
            "pending": pending,
        }
        body = await self._call("Fetch", request, namespace)
        rows = from_json(body, dict[str, list[WireDelivery]], NAME)["events"]
        return [from_delivery(row) for row in rows]

    async def _count(self, endpoint: str, request: Mapping[str, Any], namespace: str) -> int:
        body = await self._call(endpoint, request, namespace, safe=True)
        return from_json(body, dict[str, int], NAME)["count"]

    async def ack(self, *tokens: str, namespace: str = DEFAULT) -> int:
        return await self._count("Ack", {"tokens": tokens}, namespace)

    async def nack(self, *tokens: str, delay: float | None = None, namespace: str = DEFAULT) -> int:
        return await self._count("Nack", {"tokens": tokens, "delay": delay}, namespace)

    async def progress(self, *tokens: str, namespace: str = DEFAULT) -> int:
        return await self._count("Progress", {"tokens": tokens}, namespace)

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
        request = {
            "topic": topic,
            "limit": limit,
            "offset": offset,
            "sequence": sequence,
            "since": since,
            "until": until,
        }
        body = await self._call("Read", request, namespace, safe=True)
        return [from_event(r) for r in from_json(body, dict[str, list[WireEvent]], NAME)["events"]]

    async def topics(self, *, namespace: str = DEFAULT) -> list[Topic]:
        body = await self._call("Topics", {}, namespace, safe=True)
        return from_json(body, dict[str, list[Topic]], NAME)["topics"]

    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        return from_json(await self._call("Usage", {}, namespace, safe=True), Usage, NAME)

    async def retain(
        self,
        topic: str,
        *,
        ttl: float | None = None,
        max_size: int | None = None,
        namespace: str = DEFAULT,
    ) -> Topic:
        request = {"topic": topic, "ttl": ttl, "max_size": max_size}
        body = await self._call("Retain", request, namespace, safe=True)
        return from_json(body, Topic, NAME)

    async def delete(self, topic: str, *, namespace: str = DEFAULT) -> bool:
        body = await self._call("Delete", {"topic": topic}, namespace)
        return from_json(body, dict[str, bool], NAME)["deleted"]

    async def groups(self, topic: str, *, namespace: str = DEFAULT) -> list[Group]:
        body = await self._call("Groups", {"topic": topic}, namespace, safe=True)
        return from_json(body, dict[str, list[Group]], NAME)["groups"]

    async def delete_group(self, topic: str, group: str, *, namespace: str = DEFAULT) -> bool:
        body = await self._call("DeleteGroup", {"topic": topic, "group": group}, namespace)
        return from_json(body, dict[str, bool], NAME)["deleted"]

    async def dead(
        self,
        topic: str,
        group: str,
        *,
        limit: int = 100,
        offset: int = 0,
        namespace: str = DEFAULT,
    ) -> list[DeadLetter]:
        request = {"topic": topic, "group": group, "limit": limit, "offset": offset}
        body = await self._call("Dead", request, namespace, safe=True)
        rows = from_json(body, dict[str, list[WireDeadLetter]], NAME)["events"]
        return [from_letter(row) for row in rows]

    async def requeue(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = DEFAULT
    ) -> int:
        request = {"topic": topic, "group": group, "sequences": list(sequences)}
        body = await self._call("Requeue", request, namespace)
        return from_json(body, dict[str, int], NAME)["count"]

    async def discard(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = DEFAULT
    ) -> int:
        request = {"topic": topic, "group": group, "sequences": list(sequences)}
        body = await self._call("Discard", request, namespace)
        return from_json(body, dict[str, int], NAME)["count"]
