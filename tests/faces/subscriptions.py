"""A subscription over a face whose messages come as a stream that must not be cut off by a reader
that was cancelled: one task takes them, and readers wait for what it has taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from micro_ray.broker import Message, Subscription
from micro_ray.errors import BadRequest

__all__ = ["Taken"]


class Taken(Subscription):
    """``stream`` gives an empty message first, once the subscription is in force."""

    def __init__(self, stream: AsyncIterator[Message]) -> None:
        self._stream = stream
        self._messages: asyncio.Queue[Message | BaseException] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._reading = False

    async def open(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._take())
            first = await self._messages.get()
            if isinstance(first, BaseException):
                raise first

    async def _take(self) -> None:
        try:
            async with aclosing(self._stream) as stream:  # type: ignore[type-var]
                async for message in stream:
                    self._messages.put_nowait(message)
        except BaseException as error:
            self._messages.put_nowait(error)
        self._messages.put_nowait(StopAsyncIteration())

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._messages.put_nowait(StopAsyncIteration())

    async def __anext__(self) -> Message:
        if self._closed:
            raise StopAsyncIteration
        if self._reading:
            raise BadRequest("broker", "two tasks read from one subscription")
        self._reading = True
        try:
            message = await self._messages.get()
        finally:
            self._reading = False
        if self._closed or isinstance(message, asyncio.CancelledError):
            raise StopAsyncIteration
        if isinstance(message, BaseException):
            raise message
        return message
