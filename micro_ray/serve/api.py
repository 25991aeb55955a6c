"""The HTTP door as a Ray Serve deployment.

Serve places, scales, health-checks, updates and drains the door's replicas. Each replica listens
by itself on the door's port (``SO_REUSEPORT``, so that replicas share it on a node) and answers
from a watched route table, one hop from the service: Serve's own proxy and its replica wrapper
would cost ten times the hop. The same app is on Serve's HTTP route too (``__call__``), for those
who come that way.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ray import serve

from micro_ray.actors.identity import identified
from micro_ray.actors.member import limits_of
from micro_ray.api.app import Api, lifespan
from micro_ray.errors import Unavailable
from micro_ray.limits import Limit
from micro_ray.limits.gate import Gate
from micro_ray.limits.pressure import Pressure
from micro_ray.network.network import Network
from micro_ray.router.table import Table
from micro_ray.serve.listener import Listener, drain_of
from micro_ray.settings import Settings, bootstrap
from micro_ray.wire.client import WireDialer
from micro_ray.wire.gate import Supply
from micro_ray.wire.router import Follower

__all__ = ["NAME", "application"]

#: The Serve application, deployment and platform service are all named so.
NAME = "api"

#: Seconds a door waits for its first route table before it listens without one.
FIRST_TABLE = 10.0


class ApiDoor:
    """One replica of the door."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # awaited by Ray
        self._stack = contextlib.AsyncExitStack()
        try:
            await self._open(settings)
        except BaseException:
            await self._stack.aclose()
            raise

    async def _open(self, settings: Settings) -> None:
        boot = bootstrap(settings, {})
        identity = await self._stack.enter_async_context(identified(settings, NAME))
        dialer = WireDialer(limits=limits_of(settings), identity=identity)
        table = Table()
        follower = await self._stack.enter_async_context(Follower(dialer, boot.routers, table))
        network = Network(table, dialer, host=boot.host, settings=boot.network)
        self._stack.push_async_callback(network.close)
        gate = await self._gate(settings, network)
        self.api = Api(
            network,
            table,
            settings.api,
            ready=follower.ready.is_set,
            gate=gate,
            pressure=Pressure(settings.limits.memory),
            namespace=settings.namespace,
        )
        with contextlib.suppress(TimeoutError):  # then it listens, and says 503 until one comes
            async with asyncio.timeout(FIRST_TABLE):
                await follower.ready.wait()
        self._listener = Listener(self.api, settings.api.host, settings.api.port, settings.api)
        await self._listener.start()
        drain, _ = drain_of(settings.runtime.drain_timeout)
        self._stack.push_async_callback(self._listener.stop, drain)

    async def _gate(self, settings: Settings, network: Network) -> Gate:
        """What lets requests in, supplied as long as this door lives."""
        given = settings.limits
        default = Limit(rate=given.rate, burst=given.burst, concurrency=given.concurrency)
        gate = Gate(default=default, doors=settings.api.replicas)
        await self._stack.enter_async_context(Supply(gate, network, own=settings.namespace))
        return gate

    async def check_health(self) -> None:
        """Serve replaces a replica whose listener is gone."""
        if not self._listener.serving:
            raise Unavailable("api", "the listener of this replica has ended")

    async def __del__(self) -> None:
        await self._stack.aclose()


class Mount:
    """What Serve's own route serves. Serve asks for an app when the deployment is declared; ours
    exists only inside a replica, which puts it here."""

    def __init__(self) -> None:
        self.target: Api | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        assert self.target is not None
        await self.target(scope, receive, send)


def application(settings: Settings, *, address: str = "") -> serve.Application:
    """The Serve application of the door, ready for ``serve.run``. On a Ray of several machines
    ``address`` is that of the one on whose loopback interface it listens."""
    ingress: Any = serve.ingress(Mount())(ApiDoor)

    class Door(ingress):  # type: ignore[misc]  # made by Serve at run time
        async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # awaited by Ray
            await super().__init__(settings)
            self.app.target = self.api

    deployment = serve.deployment(
        name=NAME,
        num_replicas=settings.api.replicas,
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=drain_of(settings.runtime.drain_timeout)[1],
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2,
        health_check_timeout_s=5,
        max_surge_percent=100,
        rolling_update_percentage=1.0,
        ray_actor_options={
            "num_cpus": 0,
            "resources": {f"node:{address}": 0.001} if address else {},
        },
    )(Door)
    return deployment.bind(settings)
