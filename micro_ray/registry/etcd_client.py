"""A client of etcd: calls that fail over between endpoints, and streams, over grpc.aio.

Each endpoint has a channel of its own, so names of hosts work, also in certificates. A call goes to
the endpoint that answered last; one that refuses, has no leader, or says nothing for ``attempt``
seconds is left for the next, until ``patience`` is over. Tokens are asked for anew when the server
takes them no longer. The metadata ``hasleader`` makes a member that is cut off from the others say
so instead of being silent.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from micro_ray.errors import TooLarge, TooManyRequests, Unavailable
from micro_ray.registry.etcd_line import Broken, Line
from micro_ray.registry.etcd_url import Place, Trust
from micro_ray.registry.etcdapi import rpc_pb2 as pb

__all__ = ["Client", "Compacted", "Exists", "Method", "Missing", "Unsure"]

log = logging.getLogger(__name__)

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

#: Seconds between two rounds over all endpoints; those that a try has at least.
AGAIN, LEAST = 0.1, 0.1
#: How often a call asks for a new token before it takes the refusal for an answer.
TOKENS = 2
#: Reasons that are logged of one time without etcd, each once, and characters of one.
REASONS, WORDS = 10, 200

_S = grpc.StatusCode
#: What a server says of a token that it does not take.
_STALE = ("invalid auth token", "revision of auth store is old", "user name is empty")

#: Asks a member to refuse what it cannot know without a leader.
LEADER = ("hasleader", "true")
OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    # etcd ends connections that ping more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
)


class Missing(Exception):
    """There is no such lease."""


class Exists(Exception):
    """There is such a lease already."""


class Compacted(Exception):
    """The history that was asked for is no longer kept."""


class Unsure(Exception):
    """A call that may not be repeated broke: it may have been done."""


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, A]):
    """A method of etcd's API: its path, what it is asked with and what it answers."""

    path: str
    request: type[Q]
    answer: type[A]


AUTHENTICATE = Method(
    "/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse
)


class Client:
    """What is under way when it is closed ends with Unavailable."""

    def __init__(
        self, place: Place, trust: Trust | None = None, *, patience: float, attempt: float = 1.0
    ) -> None:
        self.place = place
        self.patience = patience
        self.attempt = attempt
        self._trust = trust or Trust()
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._current = 0
        self._token = ""
        self._authenticated = False
        self._authenticating = asyncio.Lock()
        #: Why each endpoint did not serve, since one did; and what of it has been logged.
        self._why: dict[int, str] = {}
        self._said: set[str] = set()
        #: Done when this client is closed.
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Idempotent."""
        if not self.closed.done():
            self.closed.set_result(None)
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    # -- calls -----------------------------------------------------------------------------------

    async def call(self, method: Method[Q, A], request: Q, *, once: bool = False) -> A:
        """The answer of the first endpoint that gives one. All have ``attempt`` seconds, then twice
        as many.

        Raises Unavailable that says why each did not, when none has within ``patience`` seconds or
        none wants us;
        TooManyRequests when etcd is full; TooLarge; :class:`Missing`, :class:`Exists`,
        :class:`Compacted`. With ``once`` what may have been done is not repeated: :class:`Unsure`.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self.patience
        failed, tokens = 0, 0
        unwanted: set[int] = set()  # endpoints that do not want us
        while True:
            number = self._current
            patient = self.attempt * 2 ** (failed // len(self.place.endpoints))
            within = max(LEAST, min(patient, end - loop.time()))
            sent = False
            try:
                metadata = await self._metadata(number, within)
                sent = True
                answer = await self._unary(number, method, request, within, metadata)
            except grpc.aio.AioRpcError as error:
                if self._is_stale(error) and tokens < TOKENS:
                    self._forget(metadata if sent else ())
                    tokens += 1
                    continue
                self._judge(error)
                why = self._words(error, within)
                if error.code() is _S.DEADLINE_EXCEEDED and within < self.attempt:
                    why = self._why.get(number, why)  # it had too little time to say anything
                self.leave(number, why)
                if _is_unwanted(error):
                    unwanted.add(number)
                elif once and sent and not _is_refused(error):
                    raise Unsure from None
            else:
                self.reached(number)
                return answer
            failed += 1
            if loop.time() + LEAST >= end or len(unwanted) == len(self.place.endpoints):
                raise self.unavailable()
            if failed % len(self.place.endpoints) == 0:
                await asyncio.sleep(AGAIN * (0.5 + random.random()))

    async def ask(self, number: int, method: Method[Q, A], request: Q) -> A:
        """The answer of one endpoint, with or without a leader, for who examines it. Raises
        Unavailable."""
        try:
            known = await self._metadata(number, self.attempt)
            metadata = [pair for pair in known if pair != LEADER]
            return await self._unary(number, method, request, self.attempt, metadata)
        except grpc.aio.AioRpcError as error:
            raise Unavailable("registry", self._words(error, self.attempt)) from None

    async def open(self, method: Method[Q, A]) -> Line[Q, A]:
        """A stream at the endpoint that answered last. Raises Broken."""
        number = self._current
        try:
            metadata = await self._metadata(number, self.attempt)
        except grpc.aio.AioRpcError as error:
            raise Broken(number, self._words(error, self.attempt)) from None
        channel = self._channel(number)
        call = channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )(metadata=metadata)
        # The stubs take the serializer for one of any message.
        stream = cast("grpc.aio.StreamStreamCall[Q, A]", call)
        return Line(stream, number, self.closed, self.attempt)

    async def _unary(
        self,
        number: int,
        method: Method[Q, A],
        request: Q,
        within: float,
        metadata: Sequence[tuple[str, str]],
    ) -> A:
        call = self._channel(number).unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        try:
            answer: A = await call(request, timeout=within, metadata=metadata)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.closed.done() and task is not None and not task.cancelling():
                raise self.unavailable() from None  # the channel was closed, not the caller ended
            raise
        return answer

    def _channel(self, number: int) -> grpc.aio.Channel:
        if self.closed.done():
            raise self.unavailable()
        channel = self._channels.get(number)
        if channel is None:
            target, options = self.place.endpoints[number], list(OPTIONS)
            if self.place.tls:
                trust = self._trust
                given = grpc.ssl_channel_credentials(trust.authority, trust.key, trust.certificate)
                channel = grpc.aio.secure_channel(target, given, options=options)
            else:
                channel = grpc.aio.insecure_channel(target, options=options)
            self._channels[number] = channel
        return channel

    # -- who we are ------------------------------------------------------------------------------

    async def _metadata(self, number: int, within: float) -> Sequence[tuple[str, str]]:
        if not self.place.user:
            return (LEADER,)
        async with self._authenticating:
            if not self._authenticated:
                self._token = await self._authenticate(number, within)
                self._authenticated = True
        return (LEADER, ("token", self._token)) if self._token else (LEADER,)

    async def _authenticate(self, number: int, within: float) -> str:
        request = pb.AuthenticateRequest(name=self.place.user, password=self.place.password)
        try:
            answer = await self._unary(number, AUTHENTICATE, request, within, ())
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                log.warning("etcd at %s asks nobody who he is (auth is not enabled)", self.place)
                return ""
            raise
        return answer.token

    def _is_stale(self, error: grpc.aio.AioRpcError) -> bool:
        text = error.details() or ""
        return bool(self.place.user) and (
            error.code() is _S.UNAUTHENTICATED or any(words in text for words in _STALE)
        )

    def _forget(self, used: Sequence[tuple[str, str]]) -> None:
        """Take a new token, unless that has been done since this one was used."""
        if ("token", self._token) in used or not self._token:
            self._authenticated = False

    def expired(self) -> None:
        """A stream was refused: ask for a new token."""
        self._authenticated = False

    # -- where we are ----------------------------------------------------------------------------

    def reached(self, number: int) -> None:
        """An endpoint has answered."""
        if self._said:
            log.info("etcd answers at %s", self.place.endpoints[number])
        self._why.clear()
        self._said.clear()

    def leave(self, number: int, why: str) -> None:
        """Go on at the next endpoint."""
        self._why[number] = why
        if any(words in why for words in _STALE):
            self.expired()
        if why not in self._said and len(self._said) < REASONS:
            self._said.add(why)
            log.warning("etcd at %s: %s", self.place.endpoints[number], why)
        if self._current == number:
            self._current = (number + 1) % len(self.place.endpoints)

    def unavailable(self) -> Unavailable:
        if self.closed.done():
            return Unavailable("registry", "the registry is closed")
        why = "; ".join(f"{self.place.endpoints[n]}: {text}" for n, text in self._why.items())
        return Unavailable("registry", f"waiting for etcd at {self.place}: {why}", 1.0)

    def _judge(self, error: grpc.aio.AioRpcError) -> None:
        """Raise what no other endpoint would answer otherwise."""
        code, text = error.code(), error.details() or ""
        if "database space exceeded" in text:
            raise TooManyRequests(
                "registry",
                f"etcd at {self.place} is full (alarm NOSPACE): reads and renewals go on, nothing "
                "new is taken; compact and defragment it, or raise --quota-backend-bytes, then "
                "`etcdctl alarm disarm`",
                10.0,
            ) from None
        if code is _S.NOT_FOUND:
            raise Missing from None
        if "lease already exists" in text:
            raise Exists from None
        if code is _S.OUT_OF_RANGE:
            raise Compacted from None
        if "request is too large" in text or "larger than max" in text:
            raise TooLarge(
                "registry", f"etcd at {self.place} takes no message of this size "
                "(--max-request-bytes)"
            ) from None  # fmt: skip

    def _words(self, error: grpc.aio.AioRpcError, within: float) -> str:
        """What a person can do something with."""
        if error.code() is _S.DEADLINE_EXCEEDED:
            return f"no answer within {within:.2g} s"
        text = (error.details() or error.code().name).removeprefix("etcdserver: ")
        text = (text.partition("last error: ")[2] or text).removeprefix("UNKNOWN: ")[:WORDS]
        if "invalid user ID or password" in text:
            return f"{text} (check user and password of registry.url)"
        if "user name is empty" in text:
            return f"{text} (etcd wants a user: registry.url etcd://user:password@...)"
        if error.code() is _S.PERMISSION_DENIED:
            return f"{text} (user {self.place.user!r} must read and write below registry.prefix)"
        return text


def _is_unwanted(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server will not have us, now or in a second."""
    text = error.details() or ""
    return error.code() in (_S.PERMISSION_DENIED, _S.UNAUTHENTICATED) or any(
        words in text for words in ("invalid user ID or password", "user name is empty")
    )


def _is_refused(error: grpc.aio.AioRpcError) -> bool:
    """Whether a call that failed was surely not done: it did not reach the server."""
    text = error.details() or ""
    return error.code() is _S.UNAVAILABLE and "failed to connect" in text.lower()
