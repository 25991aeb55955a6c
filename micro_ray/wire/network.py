"""The network's face on frames: what a caller sees of nodes, routes and services."""

from __future__ import annotations

from typing import Any

from micro_ray.context import current
from micro_ray.network.network import Network, NodeStatus
from micro_ray.router import Route
from micro_ray.wire.endpoints import Endpoints

__all__ = ["endpoints"]


def endpoints(network: Network) -> Endpoints:
    """Service ``network``."""

    async def nodes(namespace: str = "") -> list[NodeStatus]:
        """Every node, as this caller sees it."""
        return network.nodes(current().within(namespace))

    async def routes(namespace: str = "", service: str = "") -> list[Route]:
        """Every route, or those of one service."""
        return network.routes(current().within(namespace), service)

    async def services(namespace: str = "") -> list[str]:
        """The names of the services that can be called."""
        return network.services(current().within(namespace))

    async def graph(namespace: str = "") -> dict[str, Any]:
        """Services with their nodes."""
        return network.graph(current().within(namespace))

    async def status() -> dict[str, Any]:
        """How old and how large the table of this caller is."""
        return network.status()

    face = Endpoints("network")
    for name, function in (
        ("Nodes", nodes),
        ("Routes", routes),
        ("Services", services),
        ("Graph", graph),
        ("Status", status),
    ):
        face.add(f"Network.{name}", function)
    return face
