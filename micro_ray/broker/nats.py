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
import logging
import os
import random
import ssl
import time
from collections.abc import Mapping
from typing import Any

import nats.errors

from micro_ray.broker import DEFAULT, Broker, Limits, Message, Subscription, checks
from micro_ray.broker.waiting import Queue, Reader, Spaces
from micro_ray.errors import MicroError, TooLarge, Unavailable
from micro_ray.finding import Finding
from micro_ray.nats_client import GuardedClient, Taker
from micro_ray.nats_health import examine
from micro_ray.nats_url import Place
from micro_ray.nats_walls import reached

__all__ = ["NatsBroker", "word"]

log = logging.getLogger(__name__)

#: Bytes of a line of headers beside name and value, and of their frame.
LINE, FRAME = 4, 14
#: Seconds between pings; three without an answer are the end of a connection.
PING = 2.0
#: Seconds before a server is tried again; those that a connection may take to be made, and to be
#: closed.
AGAIN, CONNECT, CLOSE = 0.2, 2.0, 1.0
#: Seconds that a server has at least to confirm a subscription.
CONFIRM = 1.0
#: Reasons that are logged of one time without a connection, each once.
REASONS = 10
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
        self._place = place
        self._prefix = f"{prefix}.broker."
        self._limits = limits or Limits()
        self._tls = tls
        self._patience = patience
        self._spaces = Spaces(self._limits)
        self._subjects: dict[tuple[str, str], str] = {}
        self._readers: dict[Queue, Reader] = {}
        self._client: GuardedClient | None = None
        #: The subscriptions of the present client.
        self._native: dict[Queue, Any] = {}
        self._joining = asyncio.Lock()
        self._up = asyncio.Event()
        #: Why there is no connection, and what of it has been logged.
        self._why = "connecting"
        self._said: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> NatsBroker:
        self.begin()
        return self

    def begin(self) -> None:
        """Begin to connect; what entering it does."""
        self._keeper = asyncio.create_task(self._keep())

    @property
    def read(self) -> bool:
        """Whether there are subscriptions."""
        return bool(self._readers)

    async def close(self) -> None:
        self._closed = True
        keeper, self._keeper = self._keeper, None
        while keeper is not None and not keeper.done():
            keeper.cancel()  # again: nats-py may take it for a failure to connect
            await asyncio.wait({keeper}, timeout=0.1)
        self._readers.clear()
        self._spaces.end(Unavailable("broker", "the broker is closed"))

    async def check(self) -> None:
        await self._ready(0)

    async def examine(self) -> list[Finding]:
        """Of NATS: which servers answer, what they are, and what keeps namespaces apart."""
        found = await self.servers()
        if not self._up.is_set():
            return found
        text = "namespaces are kept apart by subjects of ours; broker.account_key has NATS do it"
        return [*found, Finding(check="broker", good=True, text=text)]

    async def reached(self, namespace: str) -> list[str] | None:
        """What our user may do with the subjects of a namespace, as the servers have it; see
        :func:`~micro_ray.nats_walls.reached`."""
        subject = self._subject(namespace, f"doctor-{os.urandom(8).hex()}")
        return await reached(self._place, self._tls, subject)

    async def servers(self) -> list[Finding]:
        """Which servers answer, and what they are."""
        client = self._client if self._up.is_set() else None
        info = dict(client._server_info) if client is not None else {}
        return await examine(self._place, info, self._why, tls=self._tls)

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
        client = self._client if self._client is not None else await self._ready()
        size = len(body)
        if headers:
            size += FRAME + sum(len(k) + len(v.encode()) + LINE for k, v in headers.items())
        if size > client.max_payload:
            raise TooLarge(
                "broker",
                f"message of {size} bytes; NATS at {self._place} takes {client.max_payload} "
                "(its max_payload)",
            )
        given = dict(headers) if headers else None
        try:
            await client.publish(subject, body, headers=given)
        except (nats.errors.Error, OSError) as error:
            raise self._unavailable(error) from None

    def subscribe(self, topic: str, *, queue: str = "", namespace: str = DEFAULT) -> Subscription:
        return Reader(self, topic, queue, namespace)

    async def enter(self, reader: Reader) -> Queue:
        """Begin a subscription: it is in force when the server has confirmed it."""
        checks.subscription(reader.topic, reader.queue, reader.namespace)
        end = time.monotonic() + max(self._patience, CONFIRM)
        client = await self._ready()
        queue = self._spaces.enter(reader.namespace)
        self._readers[queue] = reader
        try:
            while True:
                await self._join(client)
                try:
                    await client.flush(timeout=max(0.01, end - time.monotonic()))  # type: ignore[arg-type]  # any number will do
                except (nats.errors.Error, OSError) as error:
                    if time.monotonic() >= end:
                        raise self._unavailable(error) from None
                else:
                    if self._up.is_set():  # without a connection, nothing is confirmed
                        return queue
                client = await self._ready(max(0.0, end - time.monotonic()))
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

    # -- the connection --------------------------------------------------------------------------

    async def _ready(self, within: float | None = None) -> GuardedClient:
        """The client, once it is connected. Raises Unavailable after a while."""
        if self._closed or self._keeper is None:
            raise Unavailable("broker", "the broker is closed")
        if not self._up.is_set():
            try:
                async with asyncio.timeout(self._patience if within is None else within):
                    await self._up.wait()
            except TimeoutError:
                raise self._unavailable(None) from None
        if self._client is None:
            raise self._unavailable(None)
        return self._client

    def _unavailable(self, error: BaseException | None) -> MicroError:
        why = self._why if not self._up.is_set() or error is None else _words(error)
        return Unavailable("broker", f"waiting for NATS at {self._place}: {why}", 1.0)

    async def _keep(self) -> None:
        """Have a connected client, for ever. nats-py reconnects by itself when a line breaks, and
        closes for good when a server says so (accounts that change, for one): then a new client is
        made."""
        while True:
            ended = asyncio.Event()
            client = GuardedClient()
            client.tls_only = self._place.tls
            try:
                await self._connect(client, ended)
                self._client = client
                await self._join(client)
                self._connected()
                await ended.wait()
            except Exception as error:
                self._waiting(error)
            finally:
                self._up.clear()
                self._client = None
                self._native.clear()
                await _close(client)
            await asyncio.sleep(AGAIN * (0.5 + random.random()))

    async def _connect(self, client: GuardedClient, ended: asyncio.Event) -> None:
        """Connect to one of the servers, however long that takes."""

        async def failed(error: Exception) -> None:
            self._waiting(error)

        async def disconnected() -> None:
            self._up.clear()

        async def reconnected() -> None:
            self._connected()

        async def closed() -> None:
            ended.set()

        place = self._place
        scheme = "tls" if place.tls else "nats"
        options = place.options
        if self._tls is not None:
            options["tls"] = self._tls
        await client.connect(
            [f"{scheme}://{server}" for server in place.servers],
            name="micro-broker",
            error_cb=failed,
            disconnected_cb=disconnected,
            reconnected_cb=reconnected,
            closed_cb=closed,
            max_reconnect_attempts=-1,
            reconnect_time_wait=AGAIN,  # type: ignore[arg-type]  # any number will do
            connect_timeout=CONNECT,  # type: ignore[arg-type]
            ping_interval=PING,  # type: ignore[arg-type]
            max_outstanding_pings=2,
            flush_timeout=CONNECT,
            skip_subject_validation=True,  # ours is stricter
            **options,
        )

    async def _join(self, client: GuardedClient) -> None:
        """Subscribe what is not yet subscribed on this client."""
        async with self._joining:
            for queue, reader in list(self._readers.items()):
                if queue not in self._native and client is self._client:
                    self._native[queue] = await client.listen(
                        self._subject(reader.namespace, reader.topic),
                        reader.queue,
                        _taker(queue, len(self._prefix) + len(reader.namespace) + 1),
                    )

    def _connected(self) -> None:
        client = self._client
        if client is not None and client.connected_url is not None:
            log.info("connected to NATS at %s", client.connected_url.netloc.rpartition("@")[2])
            self._why = "the connection broke"
            self._said.clear()
            self._up.set()

    def _waiting(self, error: BaseException) -> None:
        self._why = why = _words(error)
        if why not in self._said and len(self._said) < REASONS:
            self._said.add(why)
            log.warning("waiting for NATS at %s: %s", self._place, why)


def word(namespace: str) -> str:
    """A namespace as the word of subjects that it is."""
    return namespace.replace(".", "=")


def _taker(queue: Queue, start: int) -> Taker:
    """Puts messages into a queue; topics are what subjects have from ``start`` on."""

    def take(subject: bytes, body: bytes, headers: Mapping[str, str] | None) -> None:
        queue.put(Message(topic=subject[start:].decode(), body=body, headers=headers or {}))

    return take


def _words(error: BaseException) -> str:
    """What a person can do something with."""
    text = str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__
    if "authorization" in text.lower():
        return f"{text} (check user and password of broker.url)"
    return text


async def _close(client: GuardedClient) -> None:
    """Close in good order, or at once when the server takes nothing."""
    try:
        async with asyncio.timeout(CLOSE):
            await client.close()
    except (TimeoutError, nats.errors.Error, OSError, AssertionError):
        client.abort()
    else:
        client.abort()
