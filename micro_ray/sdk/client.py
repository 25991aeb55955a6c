"""Calling services from asyncio code."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from micro_ray.context import CURRENT, new_request_id
from micro_ray.errors import BadGateway, BadRequest, MicroError, Unavailable
from micro_ray.network import Stream
from micro_ray.network.network import Network
from micro_ray.router import Entry, Filter
from micro_ray.router.table import Table
from micro_ray.settings import Bootstrap, bootstrap, load
from micro_ray.wire.client import WireDialer
from micro_ray.wire.router import Follower

__all__ = ["AsyncClient"]

#: Seconds that the first call waits for a route table.
FIRST_TABLE = 5.0

_encode = msgspec.json.Encoder().encode


class AsyncClient:
    """An ``async with`` that calls services by name.

    ``bootstrap`` says where the platform is (default: from the settings). Under a call that is
    being served, the caller's namespace, deadline, trace and request id go along. ``table`` is the
    route table it follows.
    """

    def __init__(self, bootstrap: Bootstrap | None = None) -> None:
        self._boot = bootstrap
        self._stack = contextlib.AsyncExitStack()
        self.table = Table()
        self._follower: Follower | None = None
        self._network: Network | None = None

    async def __aenter__(self) -> AsyncClient:
        boot = self._boot or bootstrap(load())
        self._boot = boot
        dialer = WireDialer()
        self._follower = await self._stack.enter_async_context(
            Follower(dialer, boot.routers, self.table)
        )
        self._network = Network(self.table, dialer, host=boot.host, settings=boot.network)
        self._stack.push_async_callback(self._network.close)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()
        self._network = None

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
        is ``Helloworld.Call``). ``value`` is anything JSON has, a dataclass or a struct; bytes go
        as they are and come back as they are. ``into`` is the type of the answer (default: plain
        dicts and lists). ``timeout`` in seconds (default: what is left of the call being served,
        else the settings'). ``version`` and ``node`` choose among the service's nodes.

        Raises the errors of :mod:`micro_ray.errors`: NotFound, Unavailable, Timeout, ... and what
        the service raises.
        """
        network = await self._ready()
        raw = isinstance(value, bytes | bytearray)
        answer = await network.call(
            service,
            _full(service, endpoint),
            bytes(value) if raw else _body(value),
            filter=Filter(version=version, node=node) if version or node else None,
            idempotent=idempotent,
            **self._along(timeout, metadata),
        )
        if into is bytes or (raw and into is None):
            return answer
        return _decode(answer, into, service)

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
        network = await self._ready()
        along = self._along(timeout, metadata)
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
    ) -> AsyncIterator[Any]:
        """The answers of a streaming endpoint. ``value`` is the request, or an async iterable of
        requests for endpoints that take a stream."""
        opened = await self.open(service, endpoint, timeout=timeout, metadata=metadata)
        async with opened as stream:
            # No task group: a generator may be driven from several tasks, one after the other.
            sender = asyncio.create_task(_send_all(stream, value))
            try:
                while (message := await stream.receive()) is not None:
                    yield _decode(message, into, service)
            except MicroError:
                if sender.done() and (error := sender.exception()) is not None:
                    raise error from None  # why the call was given up here
                raise
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)

    async def services(self) -> list[str]:
        """The names of the services that can be called."""
        await self._ready()
        assert self._boot is not None
        return self.table.services(self._boot.namespace)

    async def entries(self) -> list[Entry]:
        """The services with their endpoints and types."""
        await self._ready()
        assert self._boot is not None
        return self.table.entries(self._boot.namespace)

    async def _ready(self) -> Network:
        if self._network is None or self._follower is None:
            raise BadRequest("client", "use the client inside `async with`")
        if not self.table.version:
            assert self._boot is not None
            try:
                async with asyncio.timeout(FIRST_TABLE if _there(self._boot.routers) else 0):
                    await self._follower.ready.wait()
            except TimeoutError:
                raise Unavailable(
                    "client",
                    f"no micro server at {self._boot.routers[0]}; start one with `micro server`",
                ) from None
        return self._network

    def _along(self, timeout: float | None, metadata: Mapping[str, str] | None) -> dict[str, Any]:
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
        return {"namespace": namespace, "timeout": timeout, "metadata": sent}


def _there(addresses: Sequence[str]) -> bool:
    """Whether any of the addresses may have somebody behind it: a Unix socket that is not there has
    nobody, and waiting for it is no use."""
    return any(not a.startswith("unix:") or os.path.exists(a[5:]) for a in addresses)


def _full(service: str, endpoint: str) -> str:
    if "." in endpoint:
        return endpoint
    from micro_ray.wire.endpoints import endpoint_name  # late: callers need not load what serves

    return endpoint_name(service, endpoint)


def _body(value: Any) -> bytes:
    try:
        dump = getattr(value, "model_dump_json", None)
        return dump().encode() if dump is not None else _encode({} if value is None else value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest("client", f"the request cannot be sent: {error}") from None


def _decode(body: bytes, into: Any, service: str) -> Any:
    if into is bytes:
        return body
    validate = getattr(into, "model_validate_json", None)
    try:
        if validate is not None:
            return validate(body)
        return msgspec.json.decode(body, type=Any if into is None else into)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadGateway(service, f"an answer that cannot be read: {error}") from None


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
