"""What every door stands on: a followed route table, calls to services, a gate; and how Ray Serve
is to host it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from micro_ray.actors.identity import identified
from micro_ray.actors.member import limits_of
from micro_ray.api.visitors import Visitors
from micro_ray.auth.passes import key_of, platform
from micro_ray.errors import Unavailable
from micro_ray.limits import Limit
from micro_ray.limits.gate import Gate
from micro_ray.limits.pressure import Pressure
from micro_ray.network.network import Network
from micro_ray.router.table import Table
from micro_ray.serve.listener import drain_of
from micro_ray.settings import Settings, bootstrap
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.gate import Supply
from micro_ray.wire.router import Follower
from micro_ray.wire.trust import Trust

__all__ = ["Door", "Ground", "ground", "hosting"]

#: Seconds a door waits for its first route table before it listens without one.
FIRST_TABLE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """``ready()`` says whether a route table has come, and what decides who may do what. ``trust``
    is None where nobody is asked."""

    dialer: WireDialer
    trust: Trust | None
    visitors: Visitors
    table: Table
    network: Network
    gate: Gate
    pressure: Pressure
    ready: Callable[[], bool]


async def ground(stack: contextlib.AsyncExitStack, settings: Settings, name: str) -> Ground:
    """All of it, closed with the stack. It waits a little for the first route table: a door
    without one listens, and says 503 until one comes."""
    boot = bootstrap(settings, {})
    dialer, visitors, trust = await _known(stack, settings, boot.auths, name)
    table = Table()
    follower = await stack.enter_async_context(Follower(dialer, boot.routers, table))
    network = Network(table, dialer, host=boot.host, settings=boot.network)
    stack.push_async_callback(network.close)
    given = settings.limits
    gate = Gate(
        default=Limit(rate=given.rate, burst=given.burst, concurrency=given.concurrency),
        doors=settings.api.replicas + (settings.proxy.replicas if settings.proxy.port else 0),
    )
    await stack.enter_async_context(Supply(gate, network, own=settings.namespace))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_TABLE):
            await follower.ready.wait()
            await visitors.ready()
    return Ground(
        dialer=dialer,
        trust=trust,
        table=table,
        network=network,
        gate=gate,
        pressure=Pressure(given.memory),
        ready=lambda: follower.ready.is_set() and visitors.is_ready,
        visitors=visitors,
    )


async def _known(
    stack: contextlib.AsyncExitStack, settings: Settings, auths: Sequence[str], name: str
) -> tuple[WireDialer, Visitors, Trust | None]:
    """How the door is known inside, and how it knows who comes."""
    namespace, domain = settings.namespace, settings.api.domain
    limits = limits_of(settings)
    identity = await stack.enter_async_context(identified(settings, name))
    key = key_of(settings)
    if key is None:
        dialer = WireDialer(limits=limits, identity=identity)
        return dialer, Visitors(namespace=namespace, domain=domain), None
    passes = platform(key, name)
    dialer = WireDialer(limits=limits, identity=identity, credentials=passes.itself)
    trust = Trust(dialer, auths, settings.auth, platform=key.public)
    await stack.enter_async_context(trust)
    visitors = Visitors(
        trust.guard,
        passes,
        namespace=namespace,
        domain=domain,
        denials=trust.denials,
        informed=trust.informer.ready,
    )
    return dialer, visitors, trust


class Listening(Protocol):
    """What listens for a door; ``serving`` until it has ended."""

    @property
    def serving(self) -> bool: ...

    async def start(self) -> None: ...

    async def stop(self, drain: float) -> None: ...


class Door:
    """One replica of a door, which listens by itself."""

    #: Of the Serve application, the deployment and the platform service.
    name = ""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # awaited by Ray
        self._stack = contextlib.AsyncExitStack()
        try:
            on = await ground(self._stack, settings, self.name)
            self._listener = self.listener(settings, on)
            await self._open(self._stack, settings, on)
            await self._listener.start()
            drain, _ = drain_of(settings.runtime.drain_timeout)
            self._stack.push_async_callback(self._listener.stop, drain)
        except BaseException:
            await self._stack.aclose()
            raise

    def listener(self, settings: Settings, on: Ground) -> Listening:
        """What listens, on this ground; it is started and stopped here."""
        raise NotImplementedError

    async def _open(self, stack: contextlib.AsyncExitStack, settings: Settings, on: Ground) -> None:
        """Open what a door has besides; closed with the stack."""

    async def check_health(self) -> None:
        """Serve replaces a replica whose listener is gone."""
        if not self._listener.serving:
            raise Unavailable(self.name, "the listener of this replica has ended")

    async def __del__(self) -> None:
        await self._stack.aclose()


def hosting(settings: Settings, name: str, replicas: int, address: str) -> dict[str, Any]:
    """The options of a door's deployment. On a Ray of several machines ``address`` is that of the
    one on whose loopback interface it listens."""
    return {
        "name": name,
        "num_replicas": replicas,
        "max_ongoing_requests": 10_000,
        "graceful_shutdown_timeout_s": drain_of(settings.runtime.drain_timeout)[1],
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 2,
        "health_check_timeout_s": 5,
        "max_surge_percent": 100,
        "rolling_update_percentage": 1.0,
        "ray_actor_options": {
            "num_cpus": 0,
            "resources": {f"node:{address}": 0.001} if address else {},
        },
    }
