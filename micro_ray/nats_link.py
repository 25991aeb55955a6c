"""Requests over a connection to NATS that is kept for ever.

What is asked while there is none fails with the reason, after a while. A request may be answered by
several messages (:meth:`gather`).
What was under way when a connection broke fails at once with :class:`Unanswered`: whether it was
done is then not known, and is for the asker to find out.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import nats.errors

from micro_ray.errors import MicroError
from micro_ray.nats_client import GuardedClient, Taker
from micro_ray.nats_connection import Connection, words
from micro_ray.nats_url import Place

__all__ = ["Answer", "Link", "NobodyThere", "Unanswered"]

log = logging.getLogger(__name__)


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
        self._noun = noun
        self._connection = Connection(
            place,
            noun=noun,
            tls=tls,
            patience=patience,
            join=self._begin,
            left=lambda: self._native.clear(),
            up=lambda: self.on_up(),
            down=self._broken,
        )
        self._inbox = f"_INBOX.{os.urandom(11).hex()}."
        self._numbers = itertools.count()
        self._waiting: dict[bytes, Callable[[Answer | None], None]] = {}
        #: What is listened to, and the subscription of the present client.
        self._takers: dict[str, Taker] = {}
        self._native: dict[str, Any] = {}
        #: Called when there is a connection again: what was told meanwhile is lost.
        self.on_up: Callable[[], None] = lambda: None
        self._joining = asyncio.Lock()

    async def __aenter__(self) -> Link:
        self._connection.begin()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connection.close()

    # -- asking ----------------------------------------------------------------------------------

    @property
    def place(self) -> Place:
        return self._connection.place

    @property
    def tls(self) -> ssl.SSLContext | None:
        return self._connection.tls

    @property
    def info(self) -> Mapping[str, Any]:
        """What the server said of itself; nothing without a connection."""
        return self._connection.info

    @property
    def why(self) -> str:
        """What is in the way of a connection, or was last."""
        return self._connection.why

    async def ready(self) -> GuardedClient:
        """The client, once it is connected. Raises Unavailable after a while."""
        return await self._connection.ready()

    def away(self, why: str) -> MicroError:
        """What is raised while NATS is of no use."""
        return self._connection.away(why)

    async def publish(self, subject: str, body: bytes = b"") -> None:
        """Send a message to whoever listens."""
        client = await self.ready()
        try:
            await client.publish(subject, body)
        except (nats.errors.Error, OSError) as error:
            raise Unanswered(words(error, self._noun)) from None

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
        client = self._connection.client
        if client is None or not self._connection.is_up:
            client = await self.ready()
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
            raise Unanswered(words(error, self._noun)) from None
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
        client = self._connection.client
        if client is not None:
            try:
                await self._join(client)
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
                if subject not in self._native and client is self._connection.client:
                    self._native[subject] = await client.listen(subject, "", taker)

    # -- the connection --------------------------------------------------------------------------

    async def _begin(self, client: GuardedClient) -> None:
        await client.listen(self._inbox + "*", "", self._take)
        await self._join(client)

    def _broken(self) -> None:
        for take in list(self._waiting.values()):
            take(None)
