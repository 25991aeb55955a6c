"""The broker in memory: one process, nothing to run beside it. Nothing survives the process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence

from micro_ray.broker import DEFAULT, Broker, Limits, Message, Subscription, checks
from micro_ray.broker.waiting import Queue, Reader, Spaces
from micro_ray.errors import Unavailable

__all__ = ["MemoryBroker"]


class MemoryBroker(Broker):
    """``rand`` gives numbers from 0 to below 1; it chooses among the members of a group."""

    def __init__(
        self, *, limits: Limits | None = None, rand: Callable[[], float] = random.random
    ) -> None:
        self._limits = limits or Limits()
        self._rand = rand
        self._spaces = Spaces(self._limits)
        self._tables: dict[str, _Table] = {}
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        self._tables.clear()
        self._spaces.end(Unavailable("broker", "the broker is closed"))

    async def check(self) -> None:
        if self._closed:
            raise Unavailable("broker", "the broker is closed")

    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        namespace: str = DEFAULT,
    ) -> None:
        checks.target(topic, namespace)
        checks.content(body, headers, self._limits)
        await self.check()
        table = self._tables.get(namespace)
        if table is None:
            return
        message = Message(topic=topic, body=body, headers=dict(headers) if headers else {})
        crowded = False
        for queue in table.receivers(topic, self._rand):
            queue.put(message)
            crowded = crowded or queue.crowded
        if crowded:
            # Who publishes without a pause would never let those read who could.
            await asyncio.sleep(0)

    def subscribe(self, topic: str, *, queue: str = "", namespace: str = DEFAULT) -> Subscription:
        return Reader(self, topic, queue, namespace)

    async def enter(self, reader: Reader) -> Queue:
        """Begin a subscription."""
        checks.subscription(reader.topic, reader.queue, reader.namespace)
        await self.check()
        queue = self._spaces.enter(reader.namespace)
        self._tables.setdefault(reader.namespace, _Table()).add(reader, queue)
        return queue

    async def leave(self, reader: Reader, queue: Queue) -> None:
        """End a subscription."""
        self._spaces.leave(reader.namespace, queue)
        table = self._tables.get(reader.namespace)
        if table is not None and table.remove(reader, queue):
            del self._tables[reader.namespace]


class _Table:
    """Who has subscribed in one namespace: rows of a group and a queue, by the words of topics and
    of patterns."""

    def __init__(self) -> None:
        self._topics: dict[tuple[str, ...], list[tuple[str, Queue]]] = {}
        self._patterns: dict[tuple[str, ...], list[tuple[str, Queue]]] = {}

    def _rows(self, words: tuple[str, ...]) -> dict[tuple[str, ...], list[tuple[str, Queue]]]:
        return self._patterns if "*" in words or words[-1] == ">" else self._topics

    def add(self, reader: Reader, queue: Queue) -> None:
        words = tuple(reader.topic.split("."))
        self._rows(words).setdefault(words, []).append((reader.queue, queue))

    def remove(self, reader: Reader, queue: Queue) -> bool:
        """Whether nobody is left."""
        words = tuple(reader.topic.split("."))
        found = self._rows(words)
        kept = [row for row in found.get(words, ()) if row[1] is not queue]
        if kept:
            found[words] = kept
        else:
            found.pop(words, None)
        return not self._topics and not self._patterns

    def receivers(self, topic: str, rand: Callable[[], float]) -> Sequence[Queue]:
        """Who gets a message: all who are in no group, and one of each group."""
        words = tuple(topic.split("."))
        found = list(self._topics.get(words, ()))
        for pattern, rows in self._patterns.items():
            if checks.matches(pattern, words):
                found += rows
        chosen = [queue for group, queue in found if not group]
        groups: dict[str, list[Queue]] = {}
        for group, queue in found:
            if group:
                groups.setdefault(group, []).append(queue)
        return [*chosen, *(_lighter(members, rand) for members in groups.values())]


def _lighter(members: Sequence[Queue], rand: Callable[[], float]) -> Queue:
    """Of two at random the one for which less waits: a member that hangs gets few."""
    if len(members) == 1:
        return members[0]
    one, two = (members[int(rand() * len(members))] for _ in range(2))
    return one if len(one) <= len(two) else two
