"""The broker on NATS whose servers keep namespaces apart: a connection for each, by a user who may
do nothing outside of his namespace's subjects, whatever we ask for by it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any

from micro_ray.broker import DEFAULT, Broker, checks
from micro_ray.broker.nats import NatsBroker, word
from micro_ray.broker.waiting import Queue, Reader
from micro_ray.errors import TooManyRequests, Unavailable
from micro_ray.finding import Finding
from micro_ray.nats_users import Account

__all__ = ["NatsSpaces", "login"]


def login(account: Account, prefix: str, namespace: str) -> Mapping[str, Any]:
    """How a namespace's connection comes in."""
    own = [f"{prefix}.broker.{word(namespace)}.>"]
    return account.login(f"broker {namespace}", publish=own, subscribe=own)


class NatsSpaces(Broker):
    """``make`` gives the broker of a namespace, not yet entered. At most ``most`` are kept; for one
    more, the one that was used longest ago and has no subscription is closed. Entered, it has that
    of the platform's own namespace, which is never closed."""

    def __init__(self, make: Callable[[str], NatsBroker], *, most: int) -> None:
        self._make = make
        self._most = most
        #: The last used is last.
        self._kept: dict[str, NatsBroker] = {}
        #: How many verbs are under way.
        self._busy: dict[str, int] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> NatsSpaces:
        self._of(DEFAULT)
        return self

    async def close(self) -> None:
        self._closed = True
        kept, self._kept = self._kept, {}
        await asyncio.gather(*(one.close() for one in kept.values()), *self._closing)

    async def check(self) -> None:
        await self._of(DEFAULT).check()

    async def examine(self) -> list[Finding]:
        """Of NATS, as the platform's own namespace finds it: also whether its user may do anything
        with the subjects of another, which is tried."""
        home = self._of(DEFAULT)
        found = await home.servers()
        verbs = await home.reached(f"doctor-{os.urandom(8).hex()}")
        if verbs is None:
            return found
        text = "NATS keeps namespaces apart, by a user for each"
        if verbs:
            text = (
                f"NATS lets the user of one namespace {' and '.join(verbs)} subjects of another: "
                "its servers do not ask for a token (operator mode)"
            )
        return [*found, Finding(check="broker", good=not verbs, text=text)]

    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        namespace: str = DEFAULT,
    ) -> None:
        checks.target(topic, namespace)
        one = self._of(namespace)
        self._begin(namespace)
        try:
            await one.publish(topic, body, headers=headers, namespace=namespace)
        finally:
            self._end(namespace)

    def subscribe(self, topic: str, *, queue: str = "", namespace: str = DEFAULT) -> Reader:
        return Reader(self, topic, queue, namespace)

    async def enter(self, reader: Reader) -> Queue:
        """Begin a subscription: it is in force when the server has confirmed it."""
        checks.subscription(reader.topic, reader.queue, reader.namespace)
        one = self._of(reader.namespace)
        self._begin(reader.namespace)
        try:
            return await one.enter(reader)
        finally:
            self._end(reader.namespace)

    async def leave(self, reader: Reader, queue: Queue) -> None:
        """End a subscription."""
        if (one := self._kept.get(reader.namespace)) is not None:
            await one.leave(reader, queue)

    # -- the connections -------------------------------------------------------------------------

    def _of(self, namespace: str) -> NatsBroker:
        if self._closed:
            raise Unavailable("broker", "the broker is closed")
        one = self._kept.pop(namespace, None)
        if one is None:
            if len(self._kept) >= self._most:
                self._drop()
            one = self._make(namespace)
            one.begin()
        self._kept[namespace] = one
        return one

    def _drop(self) -> None:
        for namespace, one in self._kept.items():
            if namespace != DEFAULT and namespace not in self._busy and not one.read:
                del self._kept[namespace]
                task = asyncio.create_task(one.close(), name=f"broker-close {namespace}")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
                return
        raise TooManyRequests(
            "broker",
            f"{len(self._kept)} namespaces are connected to NATS here and in use, and no more may "
            "be (broker.max_connections)",
            1.0,
        )

    def _begin(self, namespace: str) -> None:
        self._busy[namespace] = self._busy.get(namespace, 0) + 1

    def _end(self, namespace: str) -> None:
        self._busy[namespace] -= 1
        if not self._busy[namespace]:
            del self._busy[namespace]
