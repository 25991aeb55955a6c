"""Events for a service: publishing, handlers that settle what they are given, streams by hand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from micro_ray.errors import BadRequest, MicroError
from micro_ray.events import Delivery, Event, Published, Start
from micro_ray.sdk.client import AsyncClient
from micro_ray.wire.remote_events import RemoteEvents
from micro_ray.wire.schema import Reader, write

__all__ = ["Message", "ServiceEvents"]

F = TypeVar("F", bound=Callable[[Any], Awaitable[Any]])

#: Seconds before a consumer whose stream broke consumes again: first, and at most.
BACKOFF = (0.1, 5.0)


class Message:
    """An event as a service is given it; settle it with one of the verbs."""

    def __init__(
        self, events: RemoteEvents, delivery: Delivery, reader: Reader | None = None
    ) -> None:
        self.event: Event = delivery.event
        self.attempt = delivery.attempt
        self._events = events
        self._token = delivery.token
        self._reader = reader or Reader()

    def json(self, into: Any = Any) -> Any:
        """The payload as JSON, of the type ``into``. Raises BadRequest when it is none."""
        try:
            return self._reader.read(self.event.payload, into)
        except (ValueError, TypeError, NotImplementedError, RecursionError) as error:
            where = f"event {self.event.sequence} of {self.event.topic}"
            raise BadRequest("events", f"{where} is not as expected: {error}") from None

    async def ack(self) -> bool:
        """It is done; False when it had been given to another meanwhile."""
        return bool(await self._events.ack(self._token))

    async def nack(self, delay: float | None = None) -> bool:
        """Give it again after ``delay`` seconds (default: the group's back-off)."""
        return bool(await self._events.nack(self._token, delay=delay))

    async def progress(self) -> bool:
        """It is being worked on: ``ack_wait`` begins anew."""
        return bool(await self._events.progress(self._token))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subscription:
    topic: str
    group: str
    handler: Callable[[Message], Awaitable[Any]]
    concurrency: int
    rules: Mapping[str, Any] = field(default_factory=dict)


class ServiceEvents:
    """``service.events``. Handlers are given before the service starts and run while it does;
    everything else needs the service to have started."""

    def __init__(self, service: str, client: Callable[[], AsyncClient]) -> None:
        self._service = service
        self._client = client
        self._reader = Reader()
        self._log = logging.getLogger(service)
        self._subscriptions: list[_Subscription] = []

    @property
    def remote(self) -> RemoteEvents:
        """All verbs of :class:`micro_ray.events.Events`."""
        return RemoteEvents(self._client())

    async def publish(
        self,
        topic: str,
        value: Any,
        *,
        metadata: Mapping[str, str] | None = None,
        id: str = "",
        expected: int | None = None,
    ) -> Published:
        """Publish bytes as they are, text as UTF-8, anything else as JSON; see
        :meth:`micro_ray.events.Events.publish`."""
        if isinstance(value, str):
            value = value.encode()
        payload = value if isinstance(value, bytes) else write(value)
        return await self.remote.publish(
            topic, payload, metadata=metadata, id=id, expected=expected
        )

    def on(
        self, topic: str, group: str = "", *, concurrency: int = 1, **rules: Any
    ) -> Callable[[F], F]:
        """Handle the events of a topic with ``async def f(message)``; as a decorator.

        The replicas of the service share the events (``group``: the service's name). What the
        handler returns from is acknowledged, what it raises of is given again and in the end a dead
        letter; while it works the event is held. Each replica handles ``concurrency`` at a time.
        ``rules`` are those of :meth:`micro_ray.events.Events.consume`; a group that is new begins
        at the beginning unless they say otherwise."""
        if concurrency < 1:
            raise BadRequest(self._service, f"concurrency {concurrency} is not 1 or more")
        if not {"start", "sequence", "since"} & rules.keys():
            rules = {"start": Start.BEGINNING, **rules}

        def add(function: F) -> F:
            self._subscriptions.append(
                _Subscription(
                    topic=topic,
                    group=group or self._service,
                    handler=function,
                    concurrency=concurrency,
                    rules=rules,
                )
            )
            return function

        return add

    async def consume(self, topic: str, group: str, **rules: Any) -> AsyncIterator[Message]:
        """The group's events, to be settled one by one, also across deaths of the platform's
        nodes; see :meth:`micro_ray.events.Events.consume`. Raises BadRequest for what cannot be."""
        pause = BACKOFF[0]
        while True:
            remote = self.remote
            taken = remote.consume(topic, group, **{**rules, "auto_ack": False})
            try:
                async with contextlib.aclosing(taken) as deliveries:  # type: ignore[type-var]  # it is a generator
                    async for delivery in deliveries:
                        pause = BACKOFF[0]
                        yield Message(remote, delivery, self._reader)
            except MicroError as error:
                if error.code in (400, 413):
                    raise
                self._log.warning("events of %s: %s; consuming again", topic, error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, BACKOFF[1])

    # -- its life --------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Within it the handlers are given events. What one is at work on when this is left goes to
        another replica."""
        tasks = [
            asyncio.create_task(self._work(subscription))
            for subscription in self._subscriptions
            for _ in range(subscription.concurrency)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, to: _Subscription) -> None:
        hold = to.rules.get("ack_wait", 30.0) / 3
        try:
            async with contextlib.aclosing(
                self.consume(to.topic, to.group, **{"prefetch": 8, **to.rules})  # type: ignore[type-var]  # it is a generator
            ) as messages:
                async for message in messages:
                    await self._handle(to, message, hold)
        except MicroError:
            self._log.exception("events of %s are not handled", to.topic)

    async def _handle(self, to: _Subscription, message: Message, hold: float) -> None:
        holding = asyncio.create_task(_hold(message, hold))
        try:
            await to.handler(message)
            settle = message.ack
        except Exception:
            event = message.event
            self._log.exception(
                "event %d of %s, attempt %d", event.sequence, event.topic, message.attempt
            )
            settle = message.nack
        finally:
            holding.cancel()
        try:
            await settle()
        except MicroError as error:
            self._log.warning("event %d of %s: %s", message.event.sequence, to.topic, error)


async def _hold(message: Message, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        with contextlib.suppress(MicroError):
            await message.progress()
