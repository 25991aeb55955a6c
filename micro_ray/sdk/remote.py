"""Calling the platform of another machine: through its gRPC door, in JSON.

:class:`Door` stands where a client of this machine has its ``Network``. It knows no nodes: the door
chooses one, finds out who calls and makes the pass for the callee. Loaded only by who needs it, for
gRPC takes longer to load than all the rest.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc

from micro_ray.context import AUTHORIZATION
from micro_ray.errors import (
    BadGateway,
    BadRequest,
    Cancelled,
    Conflict,
    Forbidden,
    InternalError,
    MicroError,
    NotFound,
    PreconditionFailed,
    Timeout,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from micro_ray.network import Stream
from micro_ray.router import Filter
from micro_ray.sdk.account import Account
from micro_ray.settings import Bootstrap
from micro_ray.wire.schema import Reader, write
from micro_ray.wire.statuses import error_of

__all__ = ["Door", "DoorAccount"]

T = TypeVar("T")

#: The scheme of a door with TLS.
SECURE = "grpcs://"
#: What makes the door take the bodies as they are, and give them so.
AS_IT_IS = ("x-content-type", "application/json")
#: Bytes of an error that is taken, in trailing metadata; of a file of certificates.
MAX_METADATA, MAX_CA = 16 * 1024, 2**20
#: Milliseconds after which a silent door is probed, that it has for an answer, that a connection
#: may take, and between attempts: first, and at most.
PROBE_AFTER, PROBE_ANSWER, DIAL, BACKOFF = 30_000, 20_000, 5_000, (100, 2_000)
#: Seconds that auth has for an answer.
PATIENCE = 10.0
#: Characters of what gRPC says that are shown.
SHOWN = 300
#: Where OpenSSL's certificates are in one file, when it does not say so.
BUNDLE = "ca-certificates.crt"
_WORD = re.compile(r"(?=.{1,256}$)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
#: What gRPC says when no connection came about: nothing was sent.
NEVER = ("failed to connect", "dns resolution failed", "name resolution", "empty address list",
         "errors resolving")  # fmt: skip
#: What a status without the fields of an error is, where its code is enough.
PLAIN: Mapping[grpc.StatusCode, type[MicroError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthorized,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.OUT_OF_RANGE: TooLarge,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooManyRequests,
    grpc.StatusCode.DEADLINE_EXCEEDED: Timeout,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: InternalError,
}


class Door:
    """One connection to a door, made by the first call. Within a loop. Raises PreconditionFailed
    for a file of certificates that cannot be read."""

    def __init__(self, boot: Bootstrap) -> None:
        self.address = boot.door
        self._timeout = boot.network.timeout
        self._closed = False
        most = boot.wire.max_message
        options = [
            ("grpc.max_receive_message_length", most),
            ("grpc.max_send_message_length", most),
            ("grpc.max_metadata_size", MAX_METADATA),
            ("grpc.absolute_max_metadata_size", MAX_METADATA),
            ("grpc.keepalive_time_ms", PROBE_AFTER),
            ("grpc.keepalive_timeout_ms", PROBE_ANSWER),
            ("grpc.min_reconnect_backoff_ms", DIAL),
            ("grpc.initial_reconnect_backoff_ms", BACKOFF[0]),
            ("grpc.max_reconnect_backoff_ms", BACKOFF[1]),
            # What another client of this process has found out is not true for this one.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        target = self.address.partition("://")[2]
        if self.address.startswith(SECURE):
            trusted = grpc.ssl_channel_credentials(_roots(boot.ca))
            self._channel = grpc.aio.secure_channel(target, trusted, options)
        else:
            self._channel = grpc.aio.insecure_channel(target, options)

    async def call(
        self,
        service: str,
        endpoint: str,
        body: bytes,
        *,
        namespace: str = "",
        timeout: float | None = None,
        content: str = "",
        metadata: Mapping[str, str] | None = None,
        filter: Filter | None = None,
        idempotent: bool = False,
    ) -> bytes:
        """One message to a service, one back; ``timeout`` in seconds (default of the settings).
        Raises what the service and the door raise, Unavailable when no door was reached,
        BadGateway when the connection broke, BadRequest for a ``filter``: the door chooses."""
        if filter is not None:
            raise BadRequest(
                "client", f"the door at {self.address} chooses: no version or node can be asked for"
            )
        call: Any = self._channel.unary_unary(_method(service, endpoint))
        left = _positive(self._timeout if timeout is None else timeout)
        return await self._told(call(body, timeout=left, metadata=_metadata(metadata or {})))

    async def open(
        self,
        service: str,
        endpoint: str,
        *,
        namespace: str = "",
        timeout: float | None = None,
        content: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Stream:
        """A streaming call of any kind; its errors, also those of :meth:`call`, come from the
        stream."""
        self._check()
        call: Any = self._channel.stream_stream(_method(service, endpoint))
        left = None if timeout is None else _positive(timeout)
        return DoorStream(call(timeout=left, metadata=_metadata(metadata or {})), self)

    async def ask(
        self, endpoint: str, request: Any, metadata: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """What a service of the platform, that of the endpoint's handler, says."""
        service = endpoint.partition(".")[0].lower()
        body = await self.call(
            service, endpoint, write(request), timeout=PATIENCE, metadata=metadata
        )
        try:
            found: dict[str, Any] = Reader().read(body, dict[str, Any])
        except (ValueError, TypeError, RecursionError):
            raise BadGateway(service, f"{self.address} gives an answer that is none") from None
        return found

    async def close(self) -> None:
        """End what is under way with Cancelled."""
        self._closed = True
        await self._channel.close()

    def _check(self) -> None:
        if self._closed:
            raise Cancelled("client", "the client was closed meanwhile")

    async def _told(self, call: Awaitable[T]) -> T:
        self._check()
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            code, said = error.code(), error.details() or ""
            raise self.error(code, said, error.trailing_metadata()) from None
        except asyncio.CancelledError:
            self._check()
            raise

    def error(
        self, code: grpc.StatusCode, said: str, trailing: Iterable[tuple[str, str | bytes]] | None
    ) -> MicroError:
        """What a status means: the error that it carries, else what gRPC has to say."""
        found = error_of(trailing or ())
        if found is not None:
            return found
        said, where = said[:SHOWN], f"the door at {self.address}"
        if code is grpc.StatusCode.UNAVAILABLE:
            if said.lower().startswith(NEVER):
                return Unavailable("client", f"{where} cannot be reached: {said}")
            return BadGateway("client", f"the connection to {where} broke: {said}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Timeout("client", f"no answer from {where} before the deadline")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in said:
            return TooLarge("client", f"{where}: {said}")
        kind = PLAIN.get(code)
        if kind is None:
            return BadGateway("client", f"{where} is none of a platform: {code.name}: {said}")
        return kind("client", f"{where}: {said}")


class DoorStream(Stream):
    """Both directions of a call."""

    def __init__(self, call: Any, door: Door) -> None:
        self._call = call
        self._door = door
        self._reading: asyncio.Task[Any] | None = None
        self._sending = asyncio.Lock()

    async def send(self, message: bytes) -> None:
        async with self._sending:
            await self._asked(_sent(self._call, message))

    async def end(self) -> None:
        async with self._sending:
            await self._asked(self._call.done_writing())

    async def receive(self) -> bytes | None:
        # Who stops waiting for a message must not end the call, as gRPC's own reading does.
        if self._reading is None:
            self._reading = asyncio.create_task(self._call.read())
        reading = self._reading
        message = await self._asked(asyncio.shield(reading))
        if self._reading is reading:
            self._reading = None
        return None if message is grpc.aio.EOF else bytes(message)

    def cancel(self) -> None:
        self._call.cancel()
        if self._reading is not None:
            self._reading.add_done_callback(_seen)

    async def _asked(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except grpc.aio.AioRpcError as error:
            code, said = error.code(), error.details() or ""
            raise self._door.error(code, said, error.trailing_metadata()) from None
        except (asyncio.InvalidStateError, grpc.aio.InternalError):  # the call takes no more
            raise await self._end() from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._call.cancelled() and not (task and task.cancelling()):
                raise Cancelled("client", "the call was given up") from None
            raise

    async def _end(self) -> MicroError:
        """Why it takes no more, as far as that is known while there are answers to be read."""
        if not self._call.done() or self._call.cancelled():
            return Cancelled("client", "the call has ended")
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return Cancelled("client", "the call has ended")
        said, trailing = await self._call.details(), await self._call.trailing_metadata()
        return self._door.error(code, said or "", trailing)


async def _sent(call: Any, message: bytes) -> None:
    """What gRPC's ``write`` does, but for one thing: when the service has ended the call before it
    has read everything, that puts "Internal error from Core" over what the service has said, and
    answers that have not been read are lost (grpc/grpc#36066). Raises InternalError then."""
    await call.wait_for_connection()
    if call.done():
        raise asyncio.InvalidStateError
    within = getattr(call, "_cython_call", None)
    if within is None:  # another gRPC than those that are known
        await call.write(message)
        return
    try:
        await within.send_serialized_message(message)
    except asyncio.CancelledError:
        call.cancel()  # half a message may be on its way
        raise


class DoorAccount(Account):
    """Who one is at a door: a token is told to nobody else, so it is all that is said."""

    def __init__(self, boot: Bootstrap, door: Door) -> None:
        super().__init__(boot, door.ask)

    def itself(self, namespace: str, service: str) -> dict[str, str]:
        return {}

    async def to(self, namespace: str, service: str) -> dict[str, str]:
        token = await self.look()
        return {AUTHORIZATION: f"Bearer {token}"} if token else {}


def _seen(task: asyncio.Task[Any]) -> None:
    """What a reading that nobody waits for has raised is known."""
    if not task.cancelled():
        task.exception()


def _positive(left: float) -> float:
    """gRPC may make a call whose deadline has passed."""
    if left <= 0:
        raise Timeout("client", "the deadline passed before the call was made")
    return left


def _method(service: str, endpoint: str) -> str:
    handler, _, name = endpoint.rpartition(".")
    if not all(_WORD.fullmatch(part) for part in (service, handler, name)):
        raise NotFound("network", f"no {endpoint[:80]!r} of a service {service[:80]!r}")
    return f"/{service}.{handler}/{name}"


def _metadata(sent: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    """As gRPC takes it. Raises BadRequest for what it does not."""
    rows = [AS_IT_IS]
    for key, value in sent.items():
        key = key.lower()
        if key == AUTHORIZATION and not value:
            continue  # said to be nobody
        own = key.startswith("grpc-") or key.endswith("-bin") or key in ("te", "content-type")
        if own or not _WORD.fullmatch(key):
            raise BadRequest("client", f"metadata {key[:80]!r} cannot go through a gRPC door")
        if not value.isascii() or not (value.isprintable() and value == value.strip()):
            raise BadRequest(
                "client", f"metadata {key[:80]}: only printable ASCII goes through a gRPC door"
            )
        rows.append((key, value))
    return rows


def _roots(file: str) -> bytes | None:
    """The certificates that are trusted: of the file, of the system, or those that gRPC has."""
    paths = ssl.get_default_verify_paths()
    bundle = Path(paths.capath or "/") / BUNDLE
    places = [Path(file)] if file else [Path(p) for p in (paths.cafile, bundle) if p]
    for place in places:
        try:
            with place.open("rb") as opened:
                return opened.read(MAX_CA)
        except OSError as error:
            if file:
                raise PreconditionFailed("client", f"{file}: {error.strerror}") from None
    return None
