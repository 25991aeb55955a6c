"""The registry's actor: ``ray.get_actor("registry", namespace="micro")``."""

from __future__ import annotations

from micro_ray.actors.backends import open_registry
from micro_ray.actors.member import Member
from micro_ray.registry import Instance, Service, Snapshot
from micro_ray.wire import registry as face
from micro_ray.wire.endpoints import Endpoints

__all__ = ["RegistryActor"]


class RegistryActor(Member):
    service = "registry"

    async def open(self) -> Endpoints:
        self.backend = await self._stack.enter_async_context(open_registry(self.settings))
        return face.endpoints(self.backend)

    async def get(self, service: str, namespace: str = "micro") -> list[Service]:
        return await self.backend.get(namespace, service)

    async def services(self, namespace: str = "micro") -> list[Service]:
        return await self.backend.list(namespace)

    async def snapshot(self) -> Snapshot:
        return await self.backend.snapshot()

    async def register(self, instance: Instance, ttl: float = 30.0) -> None:
        await self.backend.register(instance, ttl=ttl)

    async def renew(self, namespace: str, node_ids: list[str]) -> list[str]:
        return await self.backend.renew(namespace, node_ids)

    async def deregister(self, namespace: str, node_id: str) -> None:
        await self.backend.deregister(namespace, node_id)
