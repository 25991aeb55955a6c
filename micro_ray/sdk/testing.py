"""A whole platform inside one process, for the tests of services: registry, router, network, store,
broker and config in memory and events in a folder of its own, over real frames, up in well under a
second, no Ray.

In async tests::

    async def test_hello():
        async with platform() as here:
            await here.serve(service)
            assert await here.client.call("helloworld", "call", {"name": "Alice"}) == {...}

In any test, the pytest fixture ``micro`` (see ``fixture.py``)::

    def test_hello(micro):
        micro.serve(service)
        assert micro.call("helloworld", "call", {"name": "Alice"}) == {...}
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_ray.broker.memory import MemoryBroker
from micro_ray.certs.issuing import LocalCerts
from micro_ray.config.stored import StoredConfig
from micro_ray.errors import Unavailable
from micro_ray.events.sqlite import SqliteEvents
from micro_ray.limits.ledger import Ledger
from micro_ray.limits.stored import StoredLimits
from micro_ray.network.network import Network
from micro_ray.registry.memory import MemoryRegistry
from micro_ray.router.derive import Router
from micro_ray.router.table import Table
from micro_ray.sdk.client import AsyncClient
from micro_ray.sdk.service import Service
from micro_ray.sealing import KeyFile
from micro_ray.settings import Auth as Settings
from micro_ray.settings import Bootstrap
from micro_ray.store.memory import MemoryStore
from micro_ray.wire import broker as broker_face
from micro_ray.wire import certs as certs_face
from micro_ray.wire import config as config_face
from micro_ray.wire import events as events_face
from micro_ray.wire import limits as limits_face
from micro_ray.wire import network as network_face
from micro_ray.wire import registry as registry_face
from micro_ray.wire import router as router_face
from micro_ray.wire import store as store_face
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.host import Host
from micro_ray.wire.registry import RemoteRegistry
from micro_ray.wire.router import Follower

if TYPE_CHECKING:
    from micro_ray.sdk.authority import Authority
    from micro_ray.wire.trust import Trust

__all__ = ["Here", "knows", "platform"]

#: Seconds within which what was started must be known.
WAIT = 10.0


class Here:
    """The platform of a test: ``client`` calls, :meth:`serve` starts a service on it."""

    def __init__(
        self, bootstrap: Bootstrap, stack: contextlib.AsyncExitStack, auth: Settings | None = None
    ) -> None:
        self.bootstrap = bootstrap
        self.store = MemoryStore()
        self.broker = MemoryBroker()
        self.registry = MemoryRegistry()
        self.config = StoredConfig(self.store, KeyFile(bootstrap.run / "config.keys"))
        self.lender = limits_face.Lender(Ledger())
        self.limits = StoredLimits(self.config, self.lender.ledger)
        #: Accounts, rules and tokens; None where nobody is asked who he is.
        self.authority: Authority | None = None
        self.trust: Trust | None = None
        if auth is not None:
            from micro_ray.sdk.authority import Authority  # late: most tests need none

            self.authority = Authority(self.store, bootstrap.run, auth)
            self.bootstrap = replace(bootstrap, platform=self.authority.key.public, auth=auth)
        #: The platform's own services; one that is closed is away from then on.
        self.hosts: dict[str, Host] = {}
        self._stack = stack

    async def keep(self, name: str, endpoints: Endpoints) -> None:
        """Serve one of the platform's own services."""
        credentials = None
        if self.authority is not None and self.trust is not None:
            endpoints.callers = self.trust.callers(name)
            credentials = self.authority.passes(name).itself
        self.hosts[name] = await self.host(
            name, endpoints, socket_name=f"{name}-0", drain=0.0, credentials=credentials
        )

    async def open_auth(self) -> None:
        """Have rules, if they are wanted, and log the client in as who administers."""
        boot = self.bootstrap
        if self.authority is not None:
            await self._stack.enter_async_context(self.authority)
            self.trust = await self._stack.enter_async_context(self.authority.trust(boot))
            tokens = await self.authority.login("admin", scopes=("admin",))
            boot = replace(boot, token=tokens.access)
        self.client = AsyncClient(boot)

    def dialer(self, service: str) -> WireDialer:
        """What calls as a part of the platform."""
        return WireDialer() if self.authority is None else self.authority.dialer(service)

    async def host(self, service: str, endpoints: Endpoints, **options: Any) -> Host:
        """Serve endpoints without a Service."""
        boot = self.bootstrap
        return await self._stack.enter_async_context(
            Host(
                service=service,
                endpoints=endpoints,
                registry_addresses=boot.registry,
                run_dir=boot.run,
                address=boot.address,
                namespace=boot.namespace,
                **{"drain": 5.0, **options},
            )
        )

    async def serve(self, service: Service, instance: str = "") -> None:
        """Start a service; it is stopped with the platform. Returns when callers know it."""
        boot = self.bootstrap
        if self.authority is not None:
            id = instance or service.name
            boot = replace(boot, identity=self.authority.issuer.identity(id, boot.namespace))
        await service.start(boot, instance)
        self._stack.push_async_callback(service.stop)
        await self.known(service.name, service.node)

    async def known(self, service: str, node: str = "") -> None:
        """Wait until the client knows a node of a service (or this node), ten seconds at most:
        raises Unavailable then."""
        await knows(self.client, self.bootstrap.namespace, service, node)

    async def network(self, service: str = "network") -> Network:
        """A caller with a table of its own, as a part of the platform."""
        table, dialer = Table(), self.dialer(service)
        follower = await self._stack.enter_async_context(
            Follower(dialer, self.bootstrap.routers, table)
        )
        network = Network(table, dialer)
        self._stack.push_async_callback(network.close)
        await follower.ready.wait()
        return network


async def knows(client: AsyncClient, namespace: str, service: str, node: str = "") -> None:
    """Wait until a client knows a node of a service (or this node), ten seconds at most: raises
    Unavailable then."""
    table = client.table
    try:
        async with asyncio.timeout(WAIT):
            while not any(node in ("", route.id) for route in table.lookup(namespace, service)):
                await table.changed()
    except TimeoutError:
        there = ", ".join(await client.services())
        raise Unavailable("platform", f"{service} did not appear; there is {there}") from None


@asynccontextmanager
async def platform(auth: Settings | None = None) -> AsyncIterator[Here]:
    """Registry, router, network, store, broker, events, config, limits and certs, each on its
    socket in a folder of its own. With settings of ``auth`` everybody is asked who he is, by rules:
    ``client`` is then an account that administers, and ``authority`` makes others."""
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        run = Path(folder)
        boot = Bootstrap(
            registry=(f"unix:{run}/registry-0.sock",),
            routers=(f"unix:{run}/router-0.sock",),
            certs=(f"unix:{run}/certs-0.sock",),
            namespace="micro",
            host="",
            run=run,
            auths=(f"unix:{run}/authcache-0.sock", f"unix:{run}/auth-0.sock"),
        )
        async with contextlib.AsyncExitStack() as stack:
            here = Here(boot, stack, auth)
            stack.push_async_callback(here.registry.close)
            await here.open_auth()
            face = registry_face.endpoints(here.registry)
            await here.keep("registry", face)
            remote = RemoteRegistry(here.dialer("router"), boot.registry)
            stack.push_async_callback(remote.close)
            router = await stack.enter_async_context(Router(remote))
            stack.push_async_callback(here.broker.close)
            stack.push_async_callback(here.config.close)
            events = await stack.enter_async_context(SqliteEvents(run / "events"))
            certs = await stack.enter_async_context(LocalCerts(run / "certs"))
            identities = certs_face.endpoints(certs)
            identities.examine(certs.examine)
            for name, table in (
                ("router", router_face.endpoints(router)),
                ("store", store_face.endpoints(here.store)),
                ("broker", broker_face.endpoints(here.broker)),
                ("events", events_face.endpoints(events)),
                ("config", config_face.endpoints(here.config)),
                ("limits", limits_face.endpoints(here.limits, here.lender)),
                ("certs", identities),
            ):
                await here.keep(name, table)
            more = {} if here.authority is None else here.authority.faces()
            for name, table in more.items():
                await here.keep(name, table)
            await stack.enter_async_context(here.client)
            table = network_face.endpoints(await here.network())
            await here.keep("network", table)
            for name in here.hosts:
                await here.known(name)
            # Once all services have left, nobody is to be told that these go: all at once.
            stack.push_async_callback(_close, list(here.hosts.values()))
            yield here


async def _close(hosts: Sequence[Host]) -> None:
    await asyncio.gather(*(host.close() for host in hosts))
