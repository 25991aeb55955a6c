"""A stream to one endpoint of etcd that can be listened to for a while, and be left."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from micro_ray.errors import Unavailable

__all__ = ["Broken", "Line"]

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


class Broken(Exception):
    """A stream ended, or could not be made, at an endpoint."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number
        self.why = why


class Line(Generic[Q, A]):
    """``number`` is the endpoint's; ``closed`` ends waiting with Unavailable; what cannot be sent
    within ``patience`` seconds is the end of the stream. One task may receive at a time."""

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[Q, A],
        number: int,
        closed: asyncio.Future[None],
        patience: float,
    ) -> None:
        self.number = number
        self._call = call
        self._closed = closed
        self._patience = patience
        self._sending = asyncio.Lock()
        self._reading: asyncio.Task[Any] | None = None

    async def send(self, message: Q) -> None:
        """Raises Broken."""
        try:
            async with asyncio.timeout(self._patience), self._sending:
                await self._call.write(message)
        except TimeoutError:
            raise Broken(self.number, f"takes nothing for {self._patience:g} s") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._broken(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Broken(self.number, "the connection was closed") from None

    async def receive(self, within: float | None = None) -> A | None:
        """The next message, or None when none came within so many seconds. Raises Broken when the
        stream ends, Unavailable when the client is closed."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        reading = self._reading
        await asyncio.wait(
            {reading, self._closed}, timeout=within, return_when=asyncio.FIRST_COMPLETED
        )
        if self._closed.done():
            raise Unavailable("registry", "the registry is closed")
        if not reading.done():
            return None
        self._reading = None
        try:
            message = reading.result()
        except grpc.aio.AioRpcError as error:
            raise await self._broken(error) from None
        except asyncio.CancelledError:
            raise Broken(self.number, "the connection was closed") from None
        if message is grpc.aio.EOF:
            raise await self._broken(None)
        answer: A = message
        return answer

    async def close(self) -> None:
        """Idempotent."""
        reading, self._reading = self._reading, None
        self._call.cancel()
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})
            with contextlib.suppress(BaseException):
                reading.result()

    async def _broken(self, error: BaseException | None) -> Broken:
        text = ""
        if isinstance(error, grpc.aio.AioRpcError):
            text = error.details() or error.code().name
        elif error is None:
            text = await self._call.details() or (await self._call.code()).name
        text = (text or str(error)).removeprefix("etcdserver: ")
        text = text.partition("last error: ")[2] or text
        return Broken(self.number, text.removeprefix("UNKNOWN: "))
