"""A caller bound to one platform service at well-known addresses, for what must be reached before
there is a route table: the registry and the router themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from micro_ray.errors import BadGateway, MicroError, Unavailable
from micro_ray.network import Call, Dialer, Peer, Stream
from micro_ray.wire.schema import MSGPACK

__all__ = ["LIVED", "Caller", "Direct", "decode", "encode", "from_json", "to_json"]

T = TypeVar("T")

#: Seconds that a stream was open which ended with its caller's token: it is opened again with the
#: next one. One that ends sooner has a token that is none.
LIVED = 1.0

encode = msgspec.msgpack.Encoder().encode
to_json = msgspec.json.Encoder().encode


class Caller(Protocol):
    """What a remote face needs: a Network, or the SDK's client. Bodies are bytes of JSON."""

    async def call(
        self,
        service: str,
        endpoint: str,
        body: bytes,
        /,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotent: bool = False,
    ) -> bytes: ...

    async def open(
        self,
        service: str,
        endpoint: str,
        /,
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> Stream: ...


def from_json(body: bytes, kind: type[T], where: str) -> T:
    """Raises BadGateway for an answer that is not of the type."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadGateway(where, f"an answer that cannot be read: {error}") from None


def decode(body: bytes, kind: type[T], where: str) -> T:
    """Raises BadGateway for an answer that is not of the type."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadGateway(where, f"an answer that cannot be read: {error}") from None


class Direct:
    """Calls a service at the first of some addresses that answers; one connection at a time. Those
    who find that it cannot serve say so (:meth:`elsewhere`)."""

    def __init__(self, dialer: Dialer, addresses: Sequence[str], service: str) -> None:
        self._dialer = dialer
        self._addresses = tuple(addresses)
        self._service = service
        self._peer: Peer | None = None
        self._dialing = asyncio.Lock()

    async def peer(self) -> Peer:
        """A live connection. Raises Unavailable when no address answers."""
        async with self._dialing:
            if self._peer is not None and not self._peer.closed:
                return self._peer
            error: MicroError | None = None
            for address in self._addresses:
                try:
                    self._peer = await self._dialer.dial(
                        address, timeout=2.0, service=self._service
                    )
                except Unavailable as raised:
                    error = raised
                else:
                    return self._peer
            raise error or Unavailable(self._service, f"no address of {self._service} is known")

    async def call(
        self,
        endpoint: str,
        request: Any,
        kind: type[T],
        *,
        timeout: float = 10.0,
        metadata: Mapping[str, str] | None = None,
    ) -> T:
        """One MessagePack request, one answer."""
        peer = await self.peer()
        head = Call(
            service=self._service,
            endpoint=endpoint,
            timeout=timeout,
            content=MSGPACK,
            metadata=metadata or {},
        )
        return decode(await peer.call(head, encode(request)), kind, f"{self._service}.{endpoint}")

    async def open(self, endpoint: str) -> Stream:
        peer = await self.peer()
        return await peer.open(Call(service=self._service, endpoint=endpoint, content=MSGPACK))

    def let_go(self) -> bool:
        """Whether the connection takes no new call. Then it is left to what is under way there, and
        the next call has another."""
        if self._peer is None or not self._peer.closed:
            return False
        self._peer = None
        return True

    async def elsewhere(self) -> None:
        """Leave who answers but cannot serve (what is behind him is out of his reach), and begin
        with the next address."""
        peer, self._peer = self._peer, None
        self._addresses = (*self._addresses[1:], *self._addresses[:1])
        if peer is not None:
            await peer.close()

    async def close(self) -> None:
        if self._peer is not None:
            await self._peer.close()
