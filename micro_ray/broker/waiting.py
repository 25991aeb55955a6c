"""What waits to be read: bounded per subscription and per namespace, with what was lost counted.

The oldest goes first: who is late is better served with what is new, and there is always a message
left that can tell how many are gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import Protocol

from micro_ray.broker import Limits, Message, Subscription
from micro_ray.errors import BadRequest, MicroError, TooManyRequests

__all__ = ["Keeper", "Queue", "Reader", "Space", "Spaces"]

#: Bytes that a message costs beside what it says.
OVERHEAD = 300


class Spaces:
    """The namespaces that have subscriptions."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._spaces: dict[str, Space] = {}

    def enter(self, namespace: str) -> Queue:
        """A place to wait for one more subscription. Raises TooManyRequests."""
        space = self._spaces.get(namespace) or Space(self.limits)
        if len(space.queues) >= self.limits.subscriptions:
            raise TooManyRequests(
                "broker",
                f"namespace {namespace} has {self.limits.subscriptions} subscriptions here, and "
                "may have no more (broker.max_subscriptions)",
                1.0,
            )
        self._spaces[namespace] = space
        return Queue(space)

    def leave(self, namespace: str, queue: Queue) -> None:
        """End one; the last takes its namespace along."""
        queue.end()
        space = self._spaces.get(namespace)
        if space is not None and not space.queues:
            del self._spaces[namespace]

    def end(self, error: MicroError) -> None:
        """End all of them."""
        spaces, self._spaces = self._spaces, {}
        for space in spaces.values():
            for queue in list(space.queues):
                queue.end(error)


class Space:
    """What the subscriptions of one namespace hold together."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.size = 0
        self.queues: set[Queue] = set()

    def settle(self) -> None:
        """Come back within the limit, at the cost of whoever holds most."""
        while self.size > self.limits.namespace_bytes:
            max(self.queues, key=lambda queue: queue.size).drop()


class Queue:
    """The messages that wait for one reader, in order. One that is ended holds nothing."""

    def __init__(self, space: Space) -> None:
        self.size = 0
        self._space = space
        self._items: deque[tuple[Message, int]] = deque()
        self._dropped = 0
        self._waiter: asyncio.Future[None] | None = None
        self._ended: BaseException | None = None
        space.queues.add(self)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def crowded(self) -> bool:
        """Whether the reader should be given a turn."""
        return len(self._items) * 2 > self._space.limits.waiting

    def put(self, message: Message) -> None:
        """Take a message in; drop the oldest for it if need be. Never waits."""
        if self._ended is not None:
            return
        limits, space = self._space.limits, self._space
        cost = len(message.body) + OVERHEAD
        if message.headers:
            cost += sum(len(key) + len(value) for key, value in message.headers.items())
        self._items.append((message, cost))
        self.size += cost
        space.size += cost
        while len(self._items) > 1 and (
            len(self._items) > limits.waiting or self.size > limits.waiting_bytes
        ):
            self.drop()
        if space.size > limits.namespace_bytes:
            space.settle()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def drop(self) -> None:
        """Lose the oldest."""
        message, cost = self._items.popleft()
        self._dropped += 1 + message.dropped
        self._give(cost)

    def _give(self, cost: int) -> None:
        self.size -= cost
        self._space.size -= cost

    async def take(self) -> Message:
        """The oldest; waits for one. Raises what it was ended with."""
        while not self._items:
            if self._ended is not None:
                raise self._ended
            if self._waiter is not None:
                raise BadRequest("broker", "two tasks read from one subscription")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message, cost = self._items.popleft()
        self._give(cost)
        if self._dropped:
            message = replace(message, dropped=self._dropped)
            self._dropped = 0
        return message

    def end(self, error: MicroError | None = None) -> None:
        """Forget everything; readers get ``error``, or the end. Idempotent."""
        if self._ended is not None:
            return
        self._ended = error or StopAsyncIteration()
        self._items.clear()
        self._give(self.size)
        self._space.queues.discard(self)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Keeper(Protocol):
    """What a backend does for its subscriptions."""

    async def enter(self, reader: Reader) -> Queue:
        """Begin; see :meth:`Subscription.open`."""

    async def leave(self, reader: Reader, queue: Queue) -> None:
        """End it."""


class Reader(Subscription):
    """A subscription that reads from a queue which its backend fills."""

    def __init__(self, keeper: Keeper, topic: str, queue: str, namespace: str) -> None:
        self.topic = topic
        self.queue = queue
        self.namespace = namespace
        self._keeper = keeper
        self._held: Queue | None = None
        self._closed = False

    async def open(self) -> None:
        if self._held is None and not self._closed:
            self._held = await self._keeper.enter(self)

    async def close(self) -> None:
        self._closed = True
        if self._held is not None:
            await self._keeper.leave(self, self._held)

    async def __anext__(self) -> Message:
        if self._held is None:
            await self.open()
            if self._held is None:
                raise StopAsyncIteration
        return await self._held.take()
