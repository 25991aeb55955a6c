"""The router's actor: ``ray.get_actor("router", namespace="micro")``."""

from __future__ import annotations

from micro_ray.actors.member import Member
from micro_ray.router import Filter, Route
from micro_ray.router.derive import Router
from micro_ray.wire import router as face
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.registry import RemoteRegistry

__all__ = ["RouterActor"]


class RouterActor(Member):
    service = "router"

    async def open(self) -> Endpoints:
        registry = RemoteRegistry(self.dialer(), self.bootstrap.registry)
        self._stack.push_async_callback(registry.close)
        self.backend = await self._stack.enter_async_context(
            Router(
                registry,
                keep=self.settings.state / f"router-{self.index}.table",
                grace=self.settings.registry.ttl,
            )
        )
        return face.endpoints(self.backend)

    async def lookup(
        self, service: str, namespace: str = "micro", filter: Filter | None = None
    ) -> list[Route]:
        return list(self.backend.table.lookup(namespace, service, filter or Filter()))

    async def services(self, namespace: str = "micro") -> list[str]:
        return list(self.backend.table.services(namespace))
