"""The network's actor: ``ray.get_actor("network", namespace="micro")``. It lists nodes, routes and
the graph as a caller sees them, and calls services for those who only have a Ray handle."""

from __future__ import annotations

from typing import Any

from micro_ray.actors.member import Member
from micro_ray.network.network import NodeStatus
from micro_ray.router import Route
from micro_ray.wire import network as face
from micro_ray.wire.endpoints import Endpoints

__all__ = ["NetworkActor"]


class NetworkActor(Member):
    """The listings of :class:`~micro_ray.network.network.Network`, and its calls."""

    service = "network"

    async def open(self) -> Endpoints:
        self.backend, self.table = await self.network()
        return face.endpoints(self.backend)

    async def call(
        self,
        service: str,
        endpoint: str,
        body: bytes = b"{}",
        *,
        namespace: str = "micro",
        **options: Any,
    ) -> bytes:
        """Call any service: ``body`` and the answer are bytes of JSON."""
        return await self.backend.call(service, endpoint, body, namespace=namespace, **options)

    async def nodes(self, namespace: str = "micro") -> list[NodeStatus]:
        return self.backend.nodes(namespace)

    async def routes(self, namespace: str = "micro", service: str = "") -> list[Route]:
        return self.backend.routes(namespace, service)

    async def services(self, namespace: str = "micro") -> list[str]:
        return self.backend.services(namespace)

    async def graph(self, namespace: str = "micro") -> dict[str, Any]:
        return self.backend.graph(namespace)

    async def status(self) -> dict[str, Any]:
        return self.backend.status()
