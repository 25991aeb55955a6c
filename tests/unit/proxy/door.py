"""A gRPC door in this process, with services behind it and a channel to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from micro_ray import Service
from micro_ray.api.visitors import Visitors
from micro_ray.limits.gate import Gate
from micro_ray.limits.pressure import Pressure
from micro_ray.network.network import Network
from micro_ray.sdk.testing import Here, platform
from micro_ray.serve.catalogue import Catalogues
from micro_ray.serve.grpc_listener import GrpcListener
from micro_ray.serve.health import Health
from micro_ray.serve.proxy import Proxy
from micro_ray.serve.reflection import Reflection
from micro_ray.settings import Proxy as ProxySettings

__all__ = ["SETTINGS", "Opened", "opened"]

SETTINGS = ProxySettings(port=0, max_message=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    here: Here
    network: Network
    proxy: Proxy
    listener: GrpcListener
    channel: Any


@asynccontextmanager
async def opened(
    *services: Service,
    settings: ProxySettings = SETTINGS,
    gate: Gate | None = None,
    pressure: Pressure | None = None,
    visitors: Visitors | None = None,
) -> AsyncIterator[Opened]:
    async with platform() as here:
        for service in services:
            await here.serve(service, f"{service.name}-1")
        network = await here.network()
        while not all(network.table.known("micro", service.name) for service in services):
            await network.table.changed()
        catalogues, leaving = Catalogues(network.table), asyncio.Event()
        visitors = visitors or Visitors()
        proxy = Proxy(
            network, catalogues, settings, visitors=visitors, gate=gate, pressure=pressure
        )
        health = Health(
            network.table, visitors, ready=lambda: bool(network.table.version), leaving=leaving
        )
        handlers = [health, Reflection(catalogues, visitors, leaving=leaving), proxy]
        listener = GrpcListener(handlers, settings, leaving)
        await listener.start()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            async with grpc.aio.insecure_channel(f"{host}:{listener.bound}") as channel:
                yield Opened(
                    here=here, network=network, proxy=proxy, listener=listener, channel=channel
                )
        finally:
            await listener.stop(1.0)
