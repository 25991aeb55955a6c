"""The router's actor: ``ray.get_actor("router", namespace="micro")``."""

from __future__ import annotations

from collections.abc import AsyncIterator

from micro_ray.actors.member import Member
from micro_ray.actors.streams import streamed
from micro_ray.router import Delta, Entry, Filter, Route
from micro_ray.router.derive import Router
from micro_ray.wire import router as face
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.registry import RemoteRegistry

__all__ = ["RouterActor"]


class RouterActor(Member):
    """Lookups in the table, the table, and its changes."""

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
        """The routes of a service that a filter accepts, nearest first."""
        return list(self.backend.table.lookup(namespace, service, filter or Filter()))

    async def read(self, service: str = "", namespace: str = "micro") -> list[Route]:
        """The whole table, or one service's routes."""
        return self.backend.table.routes(namespace, service)

    async def entries(self, namespace: str = "micro") -> list[Entry]:
        """The services that callers may know, with their endpoints."""
        return self.backend.table.entries(namespace)

    @streamed()
    def watch(self) -> AsyncIterator[Delta]:
        """The full table, then its changes: a stream, for ever. End it with ``ray.cancel``."""
        return self.backend.watch()
