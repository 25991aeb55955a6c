"""The broker's face on frames, and the interface over a caller."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from micro_ray.broker import DEFAULT, Broker, Message, Subscription
from micro_ray.context import current
from micro_ray.errors import (
    BadGateway,
    BadRequest,
    Cancelled,
    GatewayTimeout,
    NotFound,
    Unauthorized,
    Unavailable,
)
from micro_ray.network import Stream
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.remote import Caller, from_json, to_json
from micro_ray.wire.store_records import from_text, to_text

__all__ = ["RemoteBroker", "endpoints"]

NAME = "broker"

#: Seconds between attempts to subscribe again: first, and at most; and after which it is given up.
BACKOFF, PATIENCE = (0.02, 1.0), 60.0

#: What happens to a stream whose member goes away, and to attempts while none is there.
_GONE = (Unavailable, BadGateway, Cancelled, GatewayTimeout, NotFound)


@dataclass(frozen=True, slots=True, kw_only=True)
class WireMessage:
    """A message as it crosses; ``encoding`` of the body is text or base64."""

    topic: str
    body: str = ""
    encoding: str = "text"
    headers: dict[str, str] = field(default_factory=dict)
    dropped: int = 0


class _Face:
    """The verbs as endpoints; the namespace is the caller's."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def publish(
        self,
        topic: str,
        body: str = "",
        encoding: str = "text",
        headers: dict[str, str] = {},  # noqa: B006 - copied by the struct, never changed
    ) -> None:
        """Send a message to whoever is subscribed to a topic now."""
        await self._broker.publish(
            topic, _bytes(body, encoding), headers=headers, namespace=current().namespace
        )

    async def subscribe(
        self, topic: str, queue: str = "", confirm: bool = False
    ) -> AsyncIterator[WireMessage]:
        """Messages of topics that match (* is one word, > all the rest), shared with the others of
        a queue group if one is given. With confirm, the first is an empty one that says that the
        subscription is in force."""
        space = current().namespace
        async with self._broker.subscribe(topic, queue=queue, namespace=space) as messages:
            if confirm:
                yield WireMessage(topic=topic)
            async for message in messages:
                body, encoding = to_text(message.body)
                yield WireMessage(
                    topic=message.topic,
                    body=body,
                    encoding=encoding,
                    headers=dict(message.headers),
                    dropped=message.dropped,
                )


def _bytes(body: str, encoding: str) -> bytes:
    try:
        return from_text(body, encoding)
    except BadRequest as error:
        raise BadRequest(NAME, error.detail.replace("value", "body")) from None


def endpoints(broker: Broker) -> Endpoints:
    """Service ``broker``."""

    async def backend() -> None:
        await broker.check()

    face, table = _Face(broker), Endpoints(NAME)
    table.add("Broker.Publish", face.publish)
    table.add("Broker.Subscribe", face.subscribe)
    table.check(backend)
    return table


class RemoteBroker(Broker):
    """The interface over a caller. A message is published again on another node only when it was
    surely not taken."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def close(self) -> None:
        """The caller is not ours."""

    async def check(self) -> None:
        await self._caller.call(NAME, "Debug.Health", b"{}", idempotent=True)

    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        namespace: str = DEFAULT,
    ) -> None:
        if not isinstance(body, bytes):
            raise BadRequest(NAME, f"body is {type(body).__name__}; bytes are sent")
        text, encoding = to_text(body)
        request = {"topic": topic, "body": text, "encoding": encoding, "headers": headers or {}}
        await self._caller.call(
            NAME,
            "Broker.Publish",
            _json(request),
            metadata={"micro-namespace": namespace},
        )

    def subscribe(self, topic: str, *, queue: str = "", namespace: str = DEFAULT) -> Subscription:
        return _RemoteSubscription(self._caller, topic, queue, namespace)


def _json(request: Mapping[str, object]) -> bytes:
    try:
        return to_json(request)
    except (TypeError, ValueError) as error:  # text that is not Unicode, headers that are no text
        raise BadRequest(NAME, f"the request cannot be sent: {error}") from None


class _RemoteSubscription(Subscription):
    """A stream, and another when it breaks."""

    def __init__(self, caller: Caller, topic: str, queue: str, namespace: str) -> None:
        self._caller = caller
        self._request = _json({"topic": topic, "queue": queue, "confirm": True})
        self._namespace = namespace
        self._stream: Stream | None = None
        self._closed = False
        self._reading = False

    async def open(self) -> None:
        if self._stream is not None or self._closed:
            return
        stream = await self._caller.open(
            NAME, "Broker.Subscribe", metadata={"micro-namespace": self._namespace}
        )
        try:
            await stream.send(self._request)
            await stream.end()
            if await stream.receive() is None:
                raise BadGateway(NAME, "a subscription that ended at once")
        except BaseException:
            stream.cancel()
            raise
        if self._closed:
            stream.cancel()
        else:
            self._stream = stream

    async def close(self) -> None:
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    async def __anext__(self) -> Message:
        if self._reading:
            raise BadRequest(NAME, "two tasks read from one subscription")
        self._reading = True
        try:
            return await self._next()
        finally:
            self._reading = False

    async def _next(self) -> Message:
        if self._stream is None:
            await self.open()
        while not self._closed:
            stream = self._stream
            if stream is None:
                await self._again()
                continue
            try:
                message = await stream.receive()
            except (*_GONE, Unauthorized):  # with its token, say: there may be another
                message = None
            if message is not None:
                return _message(message)
            stream.cancel()
            self._stream = None
        raise StopAsyncIteration

    async def _again(self) -> None:
        """Subscribe anew, at whichever member is there. Raises after a while."""
        pause, end = BACKOFF[0], time.monotonic() + PATIENCE
        while not self._closed:
            try:
                await self.open()
            except _GONE as error:
                if time.monotonic() > end:
                    raise Unavailable(NAME, f"the subscription broke: {error.detail}") from None
            else:
                return
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, BACKOFF[1])


def _message(body: bytes) -> Message:
    form = from_json(body, WireMessage, NAME)
    return Message(
        topic=form.topic,
        body=_bytes(form.body, form.encoding),
        headers=form.headers,
        dropped=form.dropped,
    )
