"""A connection to NATS that is kept for ever.

Servers that are not there, at the start or later, are tried again and again, and who waits for the
connection meanwhile is told the reason.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import nats.errors

from micro_ray.errors import MicroError, Unavailable
from micro_ray.nats_client import GuardedClient
from micro_ray.nats_url import Place

__all__ = ["Connection", "words"]

log = logging.getLogger(__name__)

#: Seconds between pings; three without an answer are the end of a connection.
PING = 2.0
#: Seconds before a server is tried again; those that a connection may take to be made, and to be
#: closed.
AGAIN, CONNECT, CLOSE = 0.2, 2.0, 1.0
#: Reasons that are logged of one time without a connection, each once.
REASONS = 10


class Connection:
    """``noun`` is whose errors it raises and whose setting ``<noun>.url`` they name; ``patience``
    is how long in seconds one waits for it. ``join`` makes the subscriptions of a new client and
    ``left`` forgets those of the last; ``up`` and ``down`` are told that it has come and gone.
    What is sent while it is gone fails, or waits for the next where it is ``buffered`` (2 MiB).
    """

    def __init__(
        self,
        place: Place,
        *,
        noun: str,
        tls: ssl.SSLContext | None = None,
        patience: float = 2.0,
        join: Callable[[GuardedClient], Awaitable[None]],
        left: Callable[[], None],
        up: Callable[[], None] = lambda: None,
        down: Callable[[], None] = lambda: None,
        buffered: bool = False,
    ) -> None:
        self.place = place
        self.tls = tls
        #: The present one, which may have no connection for a moment.
        self.client: GuardedClient | None = None
        #: What is in the way of a connection, or was last.
        self.why = "connecting"
        self._noun = noun
        self._patience = patience
        self._join = join
        self._left = left
        self._rose = up
        self._fell = down
        self._buffered = buffered
        self._up = asyncio.Event()
        self._said: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    def begin(self) -> None:
        """Connect, from now on."""
        self._keeper = asyncio.create_task(self._keep(), name=f"nats {self._noun}")

    async def close(self) -> None:
        self._closed = True
        keeper, self._keeper = self._keeper, None
        while keeper is not None and not keeper.done():
            keeper.cancel()  # again: nats-py may take it for a failure to connect
            await asyncio.wait({keeper}, timeout=0.1)

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    @property
    def info(self) -> Mapping[str, Any]:
        """What the server said of itself; nothing without a connection."""
        return self.client._server_info if self.client is not None and self.is_up else {}

    async def ready(self, within: float | None = None) -> GuardedClient:
        """The client, once it is connected. Raises Unavailable after so many seconds (default: the
        patience)."""
        if self._closed or self._keeper is None:
            raise Unavailable(self._noun, f"the backend of {self._noun} is closed")
        if not self.is_up:
            try:
                async with asyncio.timeout(self._patience if within is None else within):
                    await self._up.wait()
            except TimeoutError:
                raise self.away() from None
        if self.client is None:
            raise self.away()
        return self.client

    def away(self, why: str = "") -> MicroError:
        """What is raised while it is gone, or while NATS is of no use, and why."""
        return Unavailable(self._noun, f"waiting for NATS at {self.place}: {why or self.why}", 1.0)

    def failed(self, error: BaseException) -> MicroError:
        """What is raised for an error of the client."""
        return self.away(words(error, self._noun) if self.is_up else "")

    # -- keeping it ------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Have a connected client, for ever. nats-py reconnects by itself when a line breaks, and
        closes for good when a server says so (accounts that change, for one): then a new client is
        made."""
        while not self._closed:
            ended = asyncio.Event()
            client = GuardedClient()
            client.tls_only = self.place.tls
            try:
                await self._connect(client, ended)
                self.client = client
                await self._join(client)
                self._connected()
                await ended.wait()
            except Exception as error:
                self._waits(error)
            finally:
                self._broken()
                self.client = None
                self._left()
                await _close(client)
            await asyncio.sleep(AGAIN * (0.5 + random.random()))

    async def _connect(self, client: GuardedClient, ended: asyncio.Event) -> None:
        """Connect to one of the servers, however long that takes."""

        async def failed(error: Exception) -> None:
            self._waits(error)

        async def disconnected() -> None:
            self._broken()

        async def reconnected() -> None:
            self._connected()

        async def closed() -> None:
            ended.set()

        place = self.place
        options = place.options
        if self.tls is not None:
            options["tls"] = self.tls
        if not self._buffered:
            options["pending_size"] = 0
        await client.connect(
            place.urls,
            name=f"micro-{self._noun}",
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

    def _connected(self) -> None:
        client = self.client
        if client is not None and client.connected_url is not None:
            log.info("connected to NATS at %s", client.connected_url.netloc.rpartition("@")[2])
            self.why = "the connection broke"
            self._said.clear()
            self._up.set()
            self._rose()

    def _broken(self) -> None:
        self._up.clear()
        self._fell()

    def _waits(self, error: BaseException) -> None:
        self.why = why = words(error, self._noun)
        if why not in self._said and len(self._said) < REASONS:
            self._said.add(why)
            log.warning("waiting for NATS at %s: %s", self.place, why)


def words(error: BaseException, noun: str) -> str:
    """What of an error a person can do something with."""
    text = str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__
    if "authorization" in text.lower():
        return f"{text} (check user and password of {noun}.url)"
    return text


async def _close(client: GuardedClient) -> None:
    """Close in good order, or at once when the server takes nothing."""
    try:
        async with asyncio.timeout(CLOSE):
            await client.close()
    except (TimeoutError, nats.errors.Error, OSError, AssertionError):
        pass
    client.abort()
