"""The network's actor: ``ray.get_actor("network", namespace="micro")``. It lists nodes, routes and
the graph as a caller sees them, and calls services for those who only have a Ray handle."""

from __future__ import annotations

from typing import Any

from micro_ray.actors.member import Member
from micro_ray.wire import network as face
from micro_ray.wire.endpoints import Endpoints

__all__ = ["NetworkActor"]


class NetworkActor(Member):
    service = "network"

    async def open(self) -> Endpoints:
        self.backend, self.table = await self.network()
        return face.endpoints(self.backend)

    async def call(
        self, service: str, endpoint: str, body: bytes = b"{}", namespace: str = "micro"
    ) -> bytes:
        """Call any service: ``body`` and the answer are bytes of JSON."""
        return await self.backend.call(service, endpoint, body, namespace=namespace)

    async def nodes(self) -> list[Any]:
        return list(self.backend.nodes())

    async def routes(self, namespace: str = "micro") -> list[Any]:
        return list(self.backend.routes(namespace))
