"""Calling services from asyncio code."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from micro_ray.context import AUTHORIZATION, CURRENT, DEFAULT_NAMESPACE, new_request_id
from micro_ray.errors import (
    BadGateway,
    BadRequest,
    Cancelled,
    MicroError,
    NotFound,
    Unauthorized,
    Unavailable,
)
from micro_ray.network import Stream
from micro_ray.network.network import Network
from micro_ray.router import Entry, Filter
from micro_ray.router.table import Table, home
from micro_ray.sdk.account import Account, directly
from micro_ray.sdk.environments import by_settings
from micro_ray.settings import Bootstrap, load
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.enrolment import OnDemand
from micro_ray.wire.identity import Identified
from micro_ray.wire.protocol import limits_of
from micro_ray.wire.router import Follower
from micro_ray.wire.schema import Reader, write

if TYPE_CHECKING:  # they load gRPC, and what makes passes: few need that
    from micro_ray.sdk.remote import Door
    from micro_ray.wire.trust import Holder

__all__ = ["AsyncClient"]

#: Seconds that the first call waits for a route table.
FIRST_TABLE = 5.0
#: Seconds that a door has to say what there is.
FIRST_ENTRIES = 10.0
#: Seconds that the first call waits where the sockets of routers are there and nobody listens.
GONE = 0.5


class AsyncClient:
    """An ``async with`` that calls services by name.

    ``bootstrap`` says where the platform is (default: from the settings); one of another machine is
    called through its gRPC door, with what goes through that. A client speaks for one
    namespace, that of ``bootstrap``. Under a call that is being served the namespace of that call
    takes its place, and its deadline, trace and request id go along. It is known as ``holder``, the
    identity of a replica, or as whoever is logged in here (``micro login``). ``table`` is the route
    table it follows. ``identity`` is what it dials other machines with (default: that of a client,
    which it gets on the server's machine when it needs one).
    """

    def __init__(
        self,
        bootstrap: Bootstrap | None = None,
        *,
        holder: Holder | None = None,
        identity: Identified | None = None,
    ) -> None:
        self._boot = bootstrap
        self._identity = identity
        self._stack = contextlib.AsyncExitStack()
        self.table = Table()
        self._follower: Follower | None = None
        self._network: Network | Door | None = None
        self._account: Account | None = None
        self._opened = False
        self._holder = holder
        self._reader = Reader()

    async def __aenter__(self) -> AsyncClient:
        if self._opened:
            raise BadRequest("client", "a client is opened once; make another")
        self._opened = True
        boot = self._boot or by_settings(load())
        if boot.door:
            await self._through(boot)
            return self
        identity = self._identity
        if identity is None and boot.network.tls != "never":
            identity = client = OnDemand(boot)
            self._stack.push_async_callback(client.close)
        dialer = await self._known(boot, identity)
        self._boot = boot = self._meant(boot)
        self._follower = await self._stack.enter_async_context(
            Follower(dialer, boot.routers, self.table)
        )
        self._network = Network(self.table, dialer, host=boot.host, settings=boot.network)
        self._stack.push_async_callback(self._network.close)
        return self

    async def _through(self, boot: Bootstrap) -> None:
        """Call through the door of another machine."""
        from micro_ray.sdk.remote import Door, DoorAccount  # late: few need gRPC

        door = Door(boot)
        self._stack.push_async_callback(door.close)
        self._account = DoorAccount(boot, door)
        await self._account.look()
        self._boot = self._meant(boot)
        self._network = door

    def _meant(self, boot: Bootstrap) -> Bootstrap:
        """With the namespace that is meant: who is logged in to another one means that, unless he
        says otherwise."""
        if self._account is None or boot.namespace != DEFAULT_NAMESPACE:
            return boot
        return replace(boot, namespace=self._account.namespace or boot.namespace)

    async def _known(self, boot: Bootstrap, identity: Identified | None) -> WireDialer:
        """What dials as who this is: the replica whose client it is, or who is logged in here."""
        limits = limits_of(boot.wire)
        if self._holder is not None:
            own = self._holder.passes.itself
            return WireDialer(limits=limits, identity=identity, credentials=own)
        nobody = WireDialer(limits=limits, identity=identity)
        account = Account(boot, directly(boot, nobody))
        await account.look()
        self._stack.push_async_callback(account.close)
        self._account = account
        return WireDialer(limits=limits, identity=identity, credentials=account.itself)

    def itself(self, namespace: str, service: str) -> Mapping[str, str]:
        """The metadata by which this is known to a service of the platform."""
        if self._holder is not None:
            return self._holder.passes.itself(namespace, service)
        return {} if self._account is None else self._account.itself(namespace, service)

    async def __aexit__(self, *exc: object) -> None:
        self._network = None
        await self._stack.aclose()

    async def call(
        self,
        service: str,
        endpoint: str = "call",
        value: Any = None,
        *,
        into: Any = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        version: str = "",
        node: str = "",
        idempotent: bool = False,
    ) -> Any:
        """Call a unary endpoint and give its answer.

        ``endpoint`` is ``Handler.Method``, or a method of the service's own handler (``"call"``
        is ``Helloworld.Call``). ``value`` is anything JSON has, a dataclass, a struct or a pydantic
        model; bytes go as they are and come back as they are; an async iterable is a stream of
        requests, for endpoints that take one and give one answer. ``into`` is the type of the
        answer (default: plain dicts and lists). ``timeout`` in seconds (default: what is left of
        the call being served, else the settings'). ``version`` and ``node`` choose among the
        service's nodes.

        Raises the errors of :mod:`micro_ray.errors`: NotFound, Unavailable, Timeout, ... and what
        the service raises.
        """
        network = await self._ready(timeout)
        if isinstance(value, AsyncIterable):
            if version or node:
                raise BadRequest("client", "a stream of requests goes to any node")
            options: dict[str, Any] = {"into": into, "timeout": timeout, "metadata": metadata}
            return await self._gathered(service, endpoint, value, options)
        raw = isinstance(value, bytes | bytearray)
        along = await self._along(service, timeout, metadata)
        try:
            answer = await network.call(
                service,
                _full(service, endpoint),
                bytes(value) if raw else _body(value),
                filter=Filter(version=version, node=node) if version or node else None,
                idempotent=idempotent,
                **along,
            )
        except NotFound:
            self._check_known()
            raise
        if into is bytes or (raw and into is None):
            return answer
        return self._decode(answer, into, service)

    async def open(
        self,
        service: str,
        endpoint: str,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        content: str = "application/json",
    ) -> Stream:
        """A streaming call with messages as bytes, both ways; use it as ``async with``."""
        network = await self._ready(timeout)
        along = await self._along(service, timeout, metadata)
        return await network.open(service, _full(service, endpoint), content=content, **along)

    async def stream(
        self,
        service: str,
        endpoint: str,
        value: Any = None,
        *,
        into: Any = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Any, None]:
        """The answers of a streaming endpoint. ``value`` is the request, or an async iterable of
        requests for endpoints that take a stream. What the iterable raises ends the call and is
        raised here. Leaving the loop early (with ``aclose``, or ``contextlib.aclosing``) tells the
        service. ``timeout`` covers the whole stream; without one it may last for ever."""
        opened = await self.open(service, endpoint, timeout=timeout, metadata=metadata)
        async with opened as stream:
            # No task group: a generator may be driven from several tasks, one after the other.
            sender = asyncio.create_task(_send_all(stream, value))
            try:
                while (message := await stream.receive()) is not None:
                    yield self._decode(message, into, service)
            except MicroError:
                if sender.done() and (error := sender.exception()) is not None:
                    raise error from None  # why the call was given up here
                raise
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)

    async def _gathered(
        self, service: str, endpoint: str, value: Any, options: Mapping[str, Any]
    ) -> Any:
        """The one answer to a stream of requests."""
        async with contextlib.aclosing(self.stream(service, endpoint, value, **options)) as answers:
            async for answer in answers:
                return answer
        raise BadGateway(service, f"{endpoint} gave no answer")

    async def token(self) -> str:
        """The access token of who is logged in here, good for a minute at least; blank for nobody
        and for a replica."""
        return "" if self._account is None else await self._account.look()

    async def services(self) -> list[str]:
        """The names of the services that can be called."""
        return sorted({entry.service for entry in await self.entries()})

    async def entries(self) -> list[Entry]:
        """The services with their endpoints and types."""
        await self._ready()
        assert self._boot is not None
        if self._follower is not None:
            return self.table.entries(self._boot.namespace)
        found: list[Entry] = await self.call(
            "router", "Table.Entries", {}, into=list[Entry], timeout=FIRST_ENTRIES
        )
        return found

    def _check_known(self) -> None:
        """Raises Unauthorized for nobody, who is shown no services, where the platform asks."""
        asked = self._boot is not None and self._boot.platform
        if asked and self._account is not None and not self._account.itself("micro", "router"):
            raise Unauthorized("client", "you are not logged in: micro login") from None

    async def _ready(self, timeout: float | None = None) -> Network | Door:
        if self._network is None:
            raise BadRequest("client", "use the client inside `async with`")
        if self._follower is None:
            return self._network
        if not self._follower.ready.is_set() and not self.table.size:
            await self._first_table(self._follower, timeout)
            if self._network is None:
                raise Cancelled("client", "the client was closed meanwhile")
        return self._network

    async def _first_table(self, follower: Follower, timeout: float | None) -> None:
        """Wait for a router that knows the registry. Raises Unavailable, Unauthorized where one
        answers and does not let us in."""
        assert self._boot is not None
        routers = self._boot.routers
        longest = _patience(routers)
        try:
            async with asyncio.timeout(longest if timeout is None else min(longest, timeout)):
                await follower.ready.wait()
        except TimeoutError:
            if follower.refused is not None:
                raise follower.refused from None
            if self.table.version:
                raise Unavailable(
                    "client", "the platform is starting: its routers know no registry yet", 0.5
                ) from None
            raise Unavailable(
                "client",
                f"no micro server at {', '.join(routers) or 'any address'}; "
                "start one with `micro server`",
            ) from None

    def _decode(self, body: bytes, into: Any, service: str) -> Any:
        try:
            return self._reader.read(body, Any if into is None else into)
        except (ValueError, RecursionError) as error:
            raise BadGateway(service, f"an answer that cannot be read: {error}") from None
        except (TypeError, NotImplementedError) as error:
            raise BadRequest("client", f"into cannot be {into!r}: {error}") from None

    async def _along(
        self, service: str, timeout: float | None, metadata: Mapping[str, str] | None
    ) -> dict[str, Any]:
        """What goes with a call: from the call being served here, if there is one."""
        assert self._boot is not None
        context = CURRENT.get()
        sent = dict(metadata or {})
        namespace = self._boot.namespace
        if context is not None:
            namespace = context.namespace
            left = context.remaining()
            if left is not None:
                timeout = left if timeout is None else min(left, timeout)
            if context.trace:
                sent.setdefault("traceparent", context.trace)
            if context.request_id:
                sent.setdefault("x-request-id", context.request_id)
            sent.setdefault("micro-caller", context.service)
        sent.setdefault("x-request-id", new_request_id())
        sent["micro-namespace"] = namespace
        if self._account is not None and AUTHORIZATION not in sent:
            sent |= await self._account.to(home(namespace, service), service)
        return {"namespace": namespace, "timeout": timeout, "metadata": sent}


def _patience(addresses: Sequence[str]) -> float:
    """How long to wait for a table. A Unix socket that is not there has nobody, and one that
    refuses has had somebody, who may be on his way back; elsewhere who knows."""
    longest = 0.0
    for address in addresses:
        if not address.startswith("unix:"):
            return FIRST_TABLE
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(address[5:])
            except FileNotFoundError:
                continue
            except ConnectionRefusedError:
                longest = max(longest, GONE)
            except OSError:  # it listens and is busy, or is something else in the way
                return FIRST_TABLE
            else:
                return FIRST_TABLE
    return longest


def _full(service: str, endpoint: str) -> str:
    if "." in endpoint:
        return endpoint
    from micro_ray.wire.endpoints import endpoint_name  # late: callers need not load what serves

    return endpoint_name(service, endpoint)


def _body(value: Any) -> bytes:
    try:
        dump = getattr(value, "model_dump_json", None)
        return dump().encode() if dump is not None else write({} if value is None else value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest("client", f"the request cannot be sent: {error}") from None


async def _send_all(stream: Stream, value: Any) -> None:
    """Send the request, or the requests as they come. What making one raises ends the call; the
    call's own end is told by what is received."""
    requests = aiter(value) if isinstance(value, AsyncIterable) else _once(value)
    while True:
        try:
            item = await anext(requests)
            body = item if isinstance(item, bytes) else _body(item)
        except StopAsyncIteration:
            break
        except BaseException:
            stream.cancel()
            raise
        try:
            await stream.send(body)
        except MicroError:
            return
    with contextlib.suppress(MicroError):
        await stream.end()


async def _once(value: Any) -> AsyncIterator[Any]:
    yield value if isinstance(value, bytes) else _body(value)
