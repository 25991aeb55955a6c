"""The broker on NATS: core messages, at most once, nothing on any disk.

A topic is the subject ``<prefix>.broker.<namespace>.<topic>``, with the dots of the namespace as
``=``, so that it is one word and no pattern of a namespace reaches beyond it. Only the platform
speaks to NATS, never a tenant: who can write such subjects otherwise is past the wall.

One connection serves all subscriptions. When it breaks, another server is taken within a moment;
subscriptions go on there, and what was published meanwhile is lost, but for up to 2 MiB that wait
here and are sent then. Servers that are not there, at the start or later, are tried for ever; what
is asked of the broker meanwhile fails with the reason after ``patience`` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Mapping
from typing import Any

import nats.errors

from micro_ray.broker import DEFAULT, Broker, Limits, Message, Subscription, checks
from micro_ray.broker.waiting import Queue, Reader, Spaces
from micro_ray.errors import TooLarge, Unavailable
from micro_ray.finding import Finding
from micro_ray.nats_client import GuardedClient, Taker
from micro_ray.nats_connection import Connection
from micro_ray.nats_health import examine
from micro_ray.nats_url import Place
from micro_ray.nats_walls import reached

__all__ = ["NatsBroker", "word"]

#: Bytes of a line of headers beside name and value, and of their frame.
LINE, FRAME = 4, 14
#: Seconds that a server has at least to confirm a subscription.
CONFIRM = 1.0
#: Subjects of topics that are remembered.
SUBJECTS = 4096


class NatsBroker(Broker):
    """``prefix`` is the first word of subjects: platforms that share servers have different ones.
    ``tls`` is for places that ask for it. Entered, it connects by itself."""

    def __init__(
        self,
        place: Place,
        *,
        prefix: str = "micro",
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        patience: float = 2.0,
    ) -> None:
        checks.name("broker.prefix", prefix, checks.MAX_PREFIX)
        checks.topic(prefix)
        self._connection = Connection(
            place,
            noun="broker",
            tls=tls,
            patience=patience,
            join=self._join,
            left=lambda: self._native.clear(),
            buffered=True,
        )
        self._prefix = f"{prefix}.broker."
        self._limits = limits or Limits()
        self._patience = patience
        self._spaces = Spaces(self._limits)
        self._subjects: dict[tuple[str, str], str] = {}
        self._readers: dict[Queue, Reader] = {}
        #: The subscriptions of the present client.
        self._native: dict[Queue, Any] = {}
        self._joining = asyncio.Lock()

    async def __aenter__(self) -> NatsBroker:
        self.begin()
        return self

    def begin(self) -> None:
        """Begin to connect; what entering it does."""
        self._connection.begin()

    @property
    def read(self) -> bool:
        """Whether there are subscriptions."""
        return bool(self._readers)

    async def close(self) -> None:
        await self._connection.close()
        self._readers.clear()
        self._spaces.end(Unavailable("broker", "the broker is closed"))

    async def check(self) -> None:
        await self._connection.ready(0)

    async def examine(self) -> list[Finding]:
        """Of NATS: which servers answer, what they are, and what keeps namespaces apart."""
        found = await self.servers()
        if not self._connection.is_up:
            return found
        text = "namespaces are kept apart by subjects of ours; broker.account_key has NATS do it"
        return [*found, Finding(check="broker", good=True, text=text)]

    async def reached(self, namespace: str) -> list[str] | None:
        """What our user may do with the subjects of a namespace, as the servers have it; see
        :func:`~micro_ray.nats_walls.reached`."""
        subject = self._subject(namespace, f"doctor-{os.urandom(8).hex()}")
        return await reached(self._connection.place, self._connection.tls, subject)

    async def servers(self) -> list[Finding]:
        """Which servers answer, and what they are."""
        link = self._connection
        return await examine(link.place, dict(link.info), link.why, tls=link.tls)

    # -- verbs -----------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        namespace: str = DEFAULT,
    ) -> None:
        subject = self._subjects.get((namespace, topic)) or self._checked(namespace, topic)
        checks.content(body, headers, self._limits)
        client = self._connection.client or await self._connection.ready()
        size = len(body)
        if headers:
            size += FRAME + sum(len(k) + len(v.encode()) + LINE for k, v in headers.items())
        if size > client.max_payload:
            raise TooLarge(
                "broker",
                f"message of {size} bytes; NATS at {self._connection.place} takes "
                f"{client.max_payload} (its max_payload)",
            )
        given = dict(headers) if headers else None
        try:
            await client.publish(subject, body, headers=given)
        except (nats.errors.Error, OSError) as error:
            raise self._connection.failed(error) from None

    def subscribe(self, topic: str, *, queue: str = "", namespace: str = DEFAULT) -> Subscription:
        return Reader(self, topic, queue, namespace)

    async def enter(self, reader: Reader) -> Queue:
        """Begin a subscription: it is in force when the server has confirmed it."""
        checks.subscription(reader.topic, reader.queue, reader.namespace)
        end = time.monotonic() + max(self._patience, CONFIRM)
        client = await self._connection.ready()
        queue = self._spaces.enter(reader.namespace)
        self._readers[queue] = reader
        try:
            while True:
                await self._join(client)
                try:
                    await client.flush(timeout=max(0.01, end - time.monotonic()))  # type: ignore[arg-type]  # any number will do
                except (nats.errors.Error, OSError) as error:
                    if time.monotonic() >= end:
                        raise self._connection.failed(error) from None
                else:
                    if self._connection.is_up:  # without a connection, nothing is confirmed
                        return queue
                client = await self._connection.ready(max(0.0, end - time.monotonic()))
        except BaseException:
            await self.leave(reader, queue)
            raise

    async def leave(self, reader: Reader, queue: Queue) -> None:
        """End a subscription."""
        self._readers.pop(queue, None)
        self._spaces.leave(reader.namespace, queue)
        native = self._native.pop(queue, None)
        if native is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await native.unsubscribe()

    def _checked(self, namespace: str, topic: str) -> str:
        """The subject of a topic that may be one; it is remembered."""
        checks.target(topic, namespace)
        if len(self._subjects) >= SUBJECTS:
            self._subjects.clear()
        self._subjects[namespace, topic] = subject = self._subject(namespace, topic)
        return subject

    def _subject(self, namespace: str, topic: str) -> str:
        return f"{self._prefix}{word(namespace)}.{topic}"

    async def _join(self, client: GuardedClient) -> None:
        """Subscribe what is not yet subscribed on this client."""
        async with self._joining:
            for queue, reader in list(self._readers.items()):
                if queue not in self._native and client is self._connection.client:
                    self._native[queue] = await client.listen(
                        self._subject(reader.namespace, reader.topic),
                        reader.queue,
                        _taker(queue, len(self._prefix) + len(reader.namespace) + 1),
                    )


def word(namespace: str) -> str:
    """A namespace as the word of subjects that it is."""
    return namespace.replace(".", "=")


def _taker(queue: Queue, start: int) -> Taker:
    """Puts messages into a queue; topics are what subjects have from ``start`` on."""

    def take(subject: bytes, body: bytes, headers: Mapping[str, str] | None) -> None:
        queue.put(Message(topic=subject[start:].decode(), body=body, headers=headers or {}))

    return take
