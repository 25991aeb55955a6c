"""A connection to NATS that is kept for ever, and requests over it.

Servers that are not there, at the start or later, are tried again and again, and what is asked
meanwhile fails with the reason. A request may be answered by several messages (:meth:`gather`).
What was under way when a connection broke fails at once with :class:`Unanswered`: whether it was
done is then not known, and is for the asker to find out.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import nats.errors

from micro_ray.errors import MicroError, Unavailable
from micro_ray.nats_client import GuardedClient, Taker
from micro_ray.nats_url import Place

__all__ = ["Answer", "Link", "NobodyThere", "Unanswered"]

log = logging.getLogger(__name__)

#: Seconds between pings; three without an answer are the end of a connection.
PING = 2.0
#: Seconds before a server is tried again; those that a connection may take to be made, and to be
#: closed.
AGAIN, CONNECT, CLOSE = 0.2, 2.0, 1.0
#: Reasons that are logged of one time without a connection, each once.
REASONS = 10


class Unanswered(Exception):
    """No answer came; the request may have been done."""


class NobodyThere(Unanswered):
    """The server knew nobody who would answer; the request was not done."""


@dataclass(frozen=True, slots=True)
class Answer:
    headers: Mapping[str, str]
    body: bytes


class Link:
    """``noun`` is whose errors it raises and whose setting ``<noun>.url`` they name. Entered, it
    connects by itself; ``patience`` is how long in seconds a request waits for a connection."""

    def __init__(
        self, place: Place, *, noun: str, tls: ssl.SSLContext | None = None, patience: float = 2.0
    ) -> None:
        self.place = place
        self._noun = noun
        self.tls = tls
        self._patience = patience
        self._client: GuardedClient | None = None
        self._inbox = f"_INBOX.{os.urandom(11).hex()}."
        self._numbers = itertools.count()
        self._waiting: dict[bytes, Callable[[Answer | None], None]] = {}
        #: What is listened to, and the subscription of the present client.
        self._takers: dict[str, Taker] = {}
        self._native: dict[str, Any] = {}
        #: Called when there is a connection again: what was told meanwhile is lost.
        self.on_up: Callable[[], None] = lambda: None
        self._up = asyncio.Event()
        self._joining = asyncio.Lock()
        self._why = "connecting"
        self._said: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Link:
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._closed = True
        keeper, self._keeper = self._keeper, None
        while keeper is not None and not keeper.done():
            keeper.cancel()  # again: nats-py may take it for a failure to connect
            await asyncio.wait({keeper}, timeout=0.1)

    # -- asking ----------------------------------------------------------------------------------

    @property
    def info(self) -> Mapping[str, Any]:
        """What the server said of itself; nothing without a connection."""
        up = self._client is not None and self._up.is_set()
        return self._client._server_info if up and self._client is not None else {}

    @property
    def why(self) -> str:
        """What is in the way of a connection, or was last."""
        return self._why

    async def ready(self) -> GuardedClient:
        """The client, once it is connected. Raises Unavailable after a while."""
        if self._closed or self._keeper is None:
            raise Unavailable(self._noun, f"the backend of {self._noun} is closed")
        if not self._up.is_set():
            try:
                async with asyncio.timeout(self._patience):
                    await self._up.wait()
            except TimeoutError:
                raise self.away(self._why) from None
        if self._client is None:
            raise self.away(self._why)
        return self._client

    def away(self, why: str) -> MicroError:
        return Unavailable(self._noun, f"waiting for NATS at {self.place}: {why}", 1.0)

    async def publish(self, subject: str, body: bytes = b"") -> None:
        """Send a message to whoever listens."""
        client = await self.ready()
        try:
            await client.publish(subject, body)
        except (nats.errors.Error, OSError) as error:
            raise Unanswered(_words(error, self._noun)) from None

    async def request(
        self,
        subject: str,
        body: bytes = b"",
        *,
        headers: dict[str, str] | None = None,
        within: float = 5.0,
    ) -> Answer:
        """The first answer. Raises Unanswered, NobodyThere, or Unavailable before it is sent."""
        return (await self._ask(subject, body, headers, within, lambda answer: True))[0]

    async def gather(
        self,
        subject: str,
        body: bytes,
        last: Callable[[Answer], bool],
        *,
        within: float = 5.0,
    ) -> list[Answer]:
        """The answers up to the ``last``, included. Raises as :meth:`request`."""
        return await self._ask(subject, body, None, within, last)

    async def _ask(
        self,
        subject: str,
        body: bytes,
        headers: dict[str, str] | None,
        within: float,
        last: Callable[[Answer], bool],
    ) -> list[Answer]:
        client = self._client if self._up.is_set() and self._client else await self.ready()
        name = b"%d" % next(self._numbers)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Answer]] = loop.create_future()
        answers: list[Answer] = []

        def take(answer: Answer | None) -> None:
            if done.done():
                return
            if answer is None:
                done.set_exception(Unanswered("the connection broke"))
                return
            if not answers and answer.headers and answer.headers.get("Status") == "503":
                done.set_exception(NobodyThere("nobody there answers"))
                return
            answers.append(answer)
            if last(answer):
                done.set_result(answers)

        def late() -> None:
            if not done.done():
                done.set_exception(Unanswered(f"no answer within {within:g} s"))

        self._waiting[name] = take
        timer = loop.call_later(within, late)
        try:
            await client.publish(subject, body, reply=self._inbox + name.decode(), headers=headers)
            return await done
        except (nats.errors.Error, OSError) as error:
            raise Unanswered(_words(error, self._noun)) from None
        finally:
            timer.cancel()
            self._waiting.pop(name, None)

    def _take(self, subject: bytes, body: bytes, headers: Mapping[str, str] | None) -> None:
        taker = self._waiting.get(subject[len(self._inbox) :])
        if taker is not None:
            taker(Answer(headers or {}, body))

    # -- listening -------------------------------------------------------------------------------

    async def listen(self, subject: str, taker: Taker) -> None:
        """Have ``taker`` told of what is sent to a subject, from now on and on each connection to
        come; it must not raise. Without a connection it begins with the next."""
        self._takers[subject] = taker
        if self._client is not None:
            try:
                await self._join(self._client)
            except (nats.errors.Error, OSError) as error:
                log.info("listening to %s begins later: %s", subject, error)

    async def leave(self, subject: str) -> None:
        """End listening to a subject."""
        self._takers.pop(subject, None)
        native = self._native.pop(subject, None)
        if native is not None:
            try:
                await native.unsubscribe()
            except (nats.errors.Error, OSError) as error:
                log.debug("leaving %s: %s", subject, error)

    async def _join(self, client: GuardedClient) -> None:
        """Subscribe what is not yet subscribed on this client."""
        async with self._joining:
            for subject, taker in list(self._takers.items()):
                if subject not in self._native and client is self._client:
                    self._native[subject] = await client.listen(subject, "", taker)

    # -- the connection --------------------------------------------------------------------------

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
                self._client = client
                await client.listen(self._inbox + "*", "", self._take)
                await self._join(client)
                self._connected()
                await ended.wait()
            except Exception as error:
                self._waits(error)
            finally:
                self._broken()
                self._client = None
                self._native.clear()
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
        scheme = "tls" if place.tls else "nats"
        options = place.options
        if self.tls is not None:
            options["tls"] = self.tls
        await client.connect(
            [f"{scheme}://{server}" for server in place.servers],
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
            pending_size=0,  # what is asked without a connection fails, and is not sent later
            skip_subject_validation=True,  # ours is stricter
            **options,
        )

    def _connected(self) -> None:
        client = self._client
        if client is not None and client.connected_url is not None:
            log.info("connected to NATS at %s", client.connected_url.netloc.rpartition("@")[2])
            self._why = "the connection broke"
            self._said.clear()
            self._up.set()
            self.on_up()

    def _broken(self) -> None:
        self._up.clear()
        for take in list(self._waiting.values()):
            take(None)

    def _waits(self, error: BaseException) -> None:
        self._why = why = _words(error, self._noun)
        if why not in self._said and len(self._said) < REASONS:
            self._said.add(why)
            log.warning("waiting for NATS at %s: %s", self.place, why)


def _words(error: BaseException, noun: str) -> str:
    """What a person can do something with."""
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
