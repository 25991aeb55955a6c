"""The registry's actor: ``ray.get_actor("registry", namespace="micro")``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from micro_ray.actors.backends import open_registry
from micro_ray.actors.member import Member
from micro_ray.actors.streams import streamed
from micro_ray.registry import DEFAULT_TTL, Change, Instance, Service, Snapshot
from micro_ray.wire import registry as face
from micro_ray.wire.endpoints import Endpoints

__all__ = ["RegistryActor"]


class RegistryActor(Member):
    """The verbs of :class:`~micro_ray.registry.Registry`."""

    service = "registry"

    async def open(self) -> Endpoints:
        self.backend = await self._stack.enter_async_context(open_registry(self.settings))
        return face.endpoints(self.backend)

    async def register(
        self, instance: Instance, *, ttl: float = DEFAULT_TTL, holder: str = ""
    ) -> None:
        await self.backend.register(instance, ttl=ttl, holder=holder)

    async def renew(self, namespace: str, node_ids: Sequence[str]) -> list[str]:
        return await self.backend.renew(namespace, node_ids)

    async def deregister(self, namespace: str, node_id: str, *, holder: str = "") -> None:
        await self.backend.deregister(namespace, node_id, holder=holder)

    async def get(self, namespace: str, service: str) -> list[Service]:
        return await self.backend.get(namespace, service)

    async def snapshot(self) -> Snapshot:
        return await self.backend.snapshot()

    @streamed()
    def watch(self, *, epoch: str, revision: int) -> AsyncIterator[Change]:
        """A stream, for ever: end it with ``ray.cancel``."""
        return self.backend.watch(epoch=epoch, revision=revision)

    async def list(self, namespace: str) -> list[Service]:
        return await self.backend.list(namespace)
