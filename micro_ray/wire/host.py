"""A service instance: listens, registers, and leaves without losing a call."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from micro_ray.errors import Conflict
from micro_ray.network import Credentials
from micro_ray.registry import DEFAULT_TTL, Instance, Node
from micro_ray.settings import LOOPBACK
from micro_ray.wire.address import Address
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.identity import Secured
from micro_ray.wire.protocol import Limits
from micro_ray.wire.registry import Attachment
from micro_ray.wire.server import Server

__all__ = ["Host"]

#: Seconds between leaving the registry and refusing calls, for the routers to tell the callers.
LEAVING = 0.1


class Host:
    """An ``async with``: entered, the endpoints answer on a Unix socket ``<run>/<socket>.sock`` and
    a TCP port of ``address`` (default: loopback, for this machine only), any free one or ``port``,
    and registration has begun (``registered`` waits for it). Left, the node deregisters, finishes
    what it is serving (``drain`` seconds at most) and closes.

    Raises Unavailable or Conflict when it cannot listen.
    """

    def __init__(
        self,
        *,
        service: str,
        endpoints: Endpoints,
        registry_addresses: Sequence[str],
        run_dir: Path,
        version: str = "latest",
        namespace: str = "micro",
        node_id: str = "",
        socket_name: str = "",
        host: str = "",
        tcp: bool = True,
        address: str = LOOPBACK,
        port: int = 0,
        weight: int = 100,
        metadata: Mapping[str, str] | None = None,
        service_metadata: Mapping[str, str] | None = None,
        ttl: float = DEFAULT_TTL,
        drain: float = 30.0,
        limits: Limits | None = None,
        identity: Secured | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.node_id = node_id or f"{service}-{os.urandom(8).hex()}"
        self.addresses: tuple[str, ...] = ()
        self._service = service
        self._version = version
        self._namespace = namespace
        self._endpoints = endpoints
        self._registry = tuple(registry_addresses)
        self._path = f"{run_dir}/{socket_name or self.node_id}.sock"
        self._host = host
        self._tcp = str(Address(host=address, port=port)) if tcp else ""
        self._weight = weight
        self._metadata = dict(metadata or {})
        self._service_metadata = dict(service_metadata or {})
        self._ttl = ttl
        self._drain = drain
        self._limits = limits
        self._server = Server(endpoints.handler, limits=limits, name=service, identity=identity)
        self._identity = identity
        self._credentials = credentials
        self._attachment: Attachment | None = None

    async def __aenter__(self) -> Host:
        try:
            addresses = [await self._listen(f"unix:{self._path}")]
            if self._tcp:
                addresses.append(await self._listen(self._tcp))
            self.addresses = tuple(addresses)
            self._attachment = Attachment(
                WireDialer(
                    limits=self._limits, identity=self._identity, credentials=self._credentials
                ),
                self._registry,
                self.instance,
                self._ttl,
            )
            await self._attachment.__aenter__()
        except BaseException:
            await self._server.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def instance(self) -> Instance:
        """What is registered."""
        return Instance(
            service=self._service,
            version=self._version,
            namespace=self._namespace,
            endpoints=self._endpoints.published,
            metadata=self._service_metadata,
            node=Node(
                id=self.node_id,
                addresses=self.addresses,
                host=self._host,
                weight=self._weight,
                metadata=self._metadata,
            ),
        )

    @property
    def in_flight(self) -> int:
        return self._server.in_flight

    async def registered(self, timeout: float) -> None:
        """Wait until the registry has this node. Raises TimeoutError, or the registry's BadRequest
        when it refuses what is being registered."""
        assert self._attachment is not None
        async with asyncio.timeout(timeout):
            await self._attachment.settled.wait()
        if self._attachment.refused is not None:
            raise self._attachment.refused

    @property
    def is_registered(self) -> bool:
        return self._attachment is not None and self._attachment.ready.is_set()

    async def close(self) -> None:
        """Deregister, drain, close; idempotent."""
        attachment, self._attachment = self._attachment, None
        if attachment is None:
            return
        was_known = attachment.ready.is_set()
        await attachment.close()
        if was_known:
            await asyncio.sleep(LEAVING)
        with contextlib.suppress(TimeoutError):
            await self._server.drain(self._drain)
        await self._server.close()

    async def _listen(self, address: str) -> str:
        """A platform actor that was killed is restarted before its old socket is surely dead."""
        for _ in range(20):
            try:
                return await self._server.listen(address)
            except Conflict:
                await asyncio.sleep(0.1)
        return await self._server.listen(address)
