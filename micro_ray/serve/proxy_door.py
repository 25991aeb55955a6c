"""The gRPC door as a Ray Serve deployment, hosted as the HTTP door is (``api.py``): each replica
listens by itself on the shared port. Serve's own gRPC proxy is not used (decision 0014)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc
from ray import serve

from micro_ray.errors import Unavailable
from micro_ray.serve.catalogue import Catalogues
from micro_ray.serve.door import Door, Ground, hosting
from micro_ray.serve.figures import SERVICE, told
from micro_ray.serve.grpc_listener import GrpcListener
from micro_ray.serve.health import NAME as HEALTH
from micro_ray.serve.health import Health, Status, question, status_in
from micro_ray.serve.proxy import Proxy
from micro_ray.serve.reflection import Reflection
from micro_ray.settings import Settings

__all__ = ["NAME", "answers", "application"]

#: The Serve application, deployment and platform service are all named so.
NAME = "proxy"


class ProxyDoor(Door):
    """One replica of the door."""

    name = NAME

    def listener(self, settings: Settings, on: Ground) -> GrpcListener:
        leaving, catalogues = asyncio.Event(), Catalogues(on.table)
        self.proxy = proxy = Proxy(
            on.network,
            catalogues,
            settings.proxy,
            visitors=on.visitors,
            gate=on.gate,
            pressure=on.pressure,
        )
        health = Health(on.table, on.visitors, ready=on.ready, leaving=leaving)
        reflection = Reflection(catalogues, on.visitors, leaving=leaving)
        return GrpcListener([health, reflection, proxy], settings.proxy, leaving)

    async def _open(self, stack: contextlib.AsyncExitStack, settings: Settings, on: Ground) -> None:
        callers = None if on.trust is None else on.trust.callers(SERVICE)
        await stack.enter_async_context(told(self.proxy.metrics, settings.run, callers))

    async def __call__(self) -> None:
        """Serve has no route to this door."""


def application(settings: Settings, *, address: str = "") -> serve.Application:
    """The Serve application of the door, ready for ``serve.run``. On a Ray of several machines
    ``address`` is that of the one on whose loopback interface it listens."""
    options = hosting(settings, NAME, settings.proxy.replicas, address)
    return serve.deployment(**options)(ProxyDoor).bind(settings)


async def answers(host: str, port: int, within: float) -> None:
    """Wait until a door there says by gRPC's health protocol that it serves. Raises Unavailable
    when it has not within so many seconds."""
    end = time.monotonic() + within
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with grpc.aio.insecure_channel(where) as channel:
                check: Any = channel.unary_unary(f"/{HEALTH}/Check")
                if status_in(await check(question(), timeout=2)) is Status.SERVING:
                    return
        if time.monotonic() > end:
            raise Unavailable("server", f"the proxy on {where} is not ready in {within:g} s")
        await asyncio.sleep(0.05)
