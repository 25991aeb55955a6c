"""The registry's face on frames, the registration that is tied to a stream, and the interface over
a connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from micro_ray.errors import BadRequest, MicroError
from micro_ray.network import Dialer, Stream
from micro_ray.registry import DEFAULT_TTL, Change, Instance, Registry, Service, Snapshot
from micro_ray.wire.endpoints import Endpoints, endpoint_name
from micro_ray.wire.remote import Direct, decode, encode

__all__ = ["Attachment", "RemoteRegistry", "endpoints"]

log = logging.getLogger(__name__)

BACKOFF = (0.02, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """A message of ``Registry.Attach``: an instance to register, or nothing to renew it."""

    instance: Instance | None = None
    ttl: float = DEFAULT_TTL


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The answer to each message of ``Registry.Attach``."""

    node: str


class _Face:
    """The verbs as endpoints."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        # Which stream a node's registration belongs to: the end of an older one must not remove it.
        self._holders: dict[tuple[str, str], object] = {}

    async def attach(self, messages: AsyncIterator[Attach]) -> AsyncIterator[Attached]:
        """Register a node for as long as this stream lasts; empty messages renew."""
        mine, holder = None, object()
        ttl = DEFAULT_TTL
        try:
            async for message in messages:
                if message.instance is not None:
                    mine, ttl = message.instance, message.ttl
                    await self._registry.register(mine, ttl=ttl)
                    self._holders[mine.namespace, mine.node.id] = holder
                elif mine is None:
                    raise BadRequest("registry", "the first message must have an instance")
                else:
                    await self._registry.register(mine, ttl=ttl)
                yield Attached(node=mine.node.id)
        finally:
            if mine is not None:
                key = (mine.namespace, mine.node.id)
                if self._holders.get(key) is holder:
                    del self._holders[key]
                    await self._registry.deregister(*key)

    async def register(self, instance: Instance, ttl: float = DEFAULT_TTL) -> None:
        """Register a node for ``ttl`` seconds."""
        await self._registry.register(instance, ttl=ttl)

    async def renew(self, nodes: list[str], namespace: str = "micro") -> list[str]:
        """Renew leases; the answer are the nodes that are unknown."""
        return await self._registry.renew(namespace, nodes)

    async def deregister(self, node: str, namespace: str = "micro") -> None:
        """Remove a node."""
        await self._registry.deregister(namespace, node)

    async def get_service(self, service: str, namespace: str = "micro") -> list[Service]:
        """All versions of a service, with endpoints and nodes."""
        return await self._registry.get(namespace, service)

    async def list_services(self, namespace: str = "micro") -> list[Service]:
        """Every service of the namespace."""
        return await self._registry.list(namespace)

    async def snapshot(self) -> Snapshot:
        """Everything, with the revision to watch from."""
        return await self._registry.snapshot()

    async def watch(self, epoch: str, revision: int) -> AsyncIterator[Change]:
        """Changes after a revision."""
        async for change in self._registry.watch(epoch=epoch, revision=revision):
            yield change


def endpoints(registry: Registry) -> Endpoints:
    """Service ``registry``."""
    face, table = _Face(registry), Endpoints("registry")
    for name in (
        "attach", "register", "renew", "deregister", "get_service", "list_services", "snapshot",
        "watch",
    ):  # fmt: skip
        table.add(endpoint_name("registry", name), getattr(face, name))
    return table


class RemoteRegistry(Registry):
    """The interface over frames to the first registry that answers."""

    def __init__(self, dialer: Dialer, addresses: Sequence[str]) -> None:
        self._direct = Direct(dialer, addresses, "registry")

    async def register(self, instance: Instance, *, ttl: float = DEFAULT_TTL) -> None:
        request = {"instance": instance, "ttl": ttl}
        await self._direct.call("Registry.Register", request, object)

    async def renew(self, namespace: str, node_ids: Sequence[str]) -> list[str]:
        request = {"nodes": list(node_ids), "namespace": namespace}
        return await self._direct.call("Registry.Renew", request, list[str])

    async def deregister(self, namespace: str, node_id: str) -> None:
        request = {"node": node_id, "namespace": namespace}
        await self._direct.call("Registry.Deregister", request, object)

    async def get(self, namespace: str, service: str) -> list[Service]:
        request = {"service": service, "namespace": namespace}
        return await self._direct.call("Registry.GetService", request, list[Service])

    async def list(self, namespace: str) -> list[Service]:
        request = {"namespace": namespace}
        return await self._direct.call("Registry.ListServices", request, list[Service])

    async def snapshot(self) -> Snapshot:
        return await self._direct.call("Registry.Snapshot", {}, Snapshot)

    async def watch(self, *, epoch: str, revision: int) -> AsyncIterator[Change]:
        async with await self._direct.open("Registry.Watch") as stream:
            await stream.send(encode({"epoch": epoch, "revision": revision}))
            await stream.end()
            while (message := await stream.receive()) is not None:
                yield decode(message, Change, "registry")

    async def close(self) -> None:
        await self._direct.close()


class Attachment:
    """An ``async with`` that keeps a node registered at the first registry that answers, and again
    whenever the stream breaks (the registry restarted, the line was cut). ``ready`` is set while it
    is registered."""

    def __init__(
        self,
        dialer: Dialer,
        addresses: Sequence[str],
        instance: Instance,
        ttl: float = DEFAULT_TTL,
    ) -> None:
        self._direct = Direct(dialer, addresses, "registry")
        self._instance = instance
        self._ttl = ttl
        self._task: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        self.ready = asyncio.Event()
        #: Why the registry refuses this instance (its fault, not the line's), if it does.
        self.refused: MicroError | None = None
        self.settled = asyncio.Event()

    async def __aenter__(self) -> Attachment:
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the registry in good order; idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self.ready.clear()
        await self._direct.close()

    async def _keep(self) -> None:
        pause = BACKOFF[0]
        while True:
            try:
                async with await self._direct.open("Registry.Attach") as stream:
                    pause = BACKOFF[0]
                    await self._hold(stream)
            except (MicroError, TimeoutError) as error:
                log.info("not registered: %s", error)
                if isinstance(error, BadRequest):
                    self.refused = error
                    self.settled.set()
                    return
            finally:
                self.ready.clear()
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, BACKOFF[1])

    async def _hold(self, stream: Stream) -> None:
        await stream.send(encode(Attach(instance=self._instance, ttl=self._ttl)))
        if await stream.receive() is None:
            return
        self.ready.set()
        self.settled.set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ttl / 3):
                    await stream.receive()  # nothing is due: this ends when the stream breaks
                    return
            await stream.send(encode(Attach()))
            async with asyncio.timeout(self._ttl):
                if await stream.receive() is None:
                    return
