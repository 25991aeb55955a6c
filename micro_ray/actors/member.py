"""What every platform actor is made of: one member of one service's pool.

A member opens its backend, serves it on frames under the well-known socket
``<run>/<service>-<index>.sock``, registers as a node of the service, and offers the same verbs on
its Ray handle. The data plane (frames) never touches Ray; the handle is for people,
administration and bootstrapping.

Ray runs ``async __init__`` on the actor's own event loop, so everything here lives on one loop.
After a kill Ray restarts the actor by running ``__init__`` again, which is why a member needs
nothing but its arguments to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from micro_ray.actors.asking import asking
from micro_ray.actors.identity import identified
from micro_ray.auth.passes import Passes, key_of, platform
from micro_ray.finding import Examined
from micro_ray.limits import Kind
from micro_ray.limits.gate import Gate
from micro_ray.network import Credentials, Dialer
from micro_ray.network.network import Network
from micro_ray.router.table import Table
from micro_ray.settings import Bootstrap, Settings, bootstrap, here
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.gate import Supply
from micro_ray.wire.host import Host
from micro_ray.wire.identity import Secured
from micro_ray.wire.protocol import Limits
from micro_ray.wire.protocol import limits_of as frames
from micro_ray.wire.router import Follower
from micro_ray.wire.trust import Trust

__all__ = ["Member", "limits_of"]

#: Seconds that a member finishes calls when it is stopped. Attachments and watches never end by
#: themselves, and those who hold them know how to go on elsewhere.
DRAIN = 1.0


def limits_of(settings: Settings) -> Limits:
    """The limits of frames that the settings ask for."""
    return frames(settings.wire)


class Member:
    """The body of a platform actor; each noun's actor derives from it and adds its verbs."""

    #: The service this actor is a member of.
    service = ""
    #: Whether its verbs ask who calls (``asking.py``), and which do not.
    asks = True
    unasked: frozenset[str] = frozenset()
    #: Verbs that are told as ``by`` who calls.
    authored: frozenset[str] = frozenset()

    def __init_subclass__(cls) -> None:
        for name, verb in list(vars(cls).items()) if cls.asks else ():
            if not inspect.iscoroutinefunction(verb) and not inspect.isasyncgenfunction(verb):
                continue
            if not name.startswith("_") and name not in cls.unasked and not hasattr(Member, name):
                setattr(cls, name, asking(verb, cls.service, authored=name in cls.authored))

    async def __init__(self, settings: Settings, index: int) -> None:  # type: ignore[misc]  # awaited by Ray
        if settings.ray.address != "local":
            settings = here(settings, ray.util.get_node_ip_address())
        self.settings = settings
        self.index = index
        for folder in (settings.state, settings.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # another machine may have none
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        self._stack = contextlib.AsyncExitStack()
        #: By which this process is known, and what it knows of others; None: nobody asks.
        self.passes: Passes | None = None
        self.trust: Trust | None = None
        self._stopped = asyncio.Event()
        #: What this member is named in the registry, and by its certificate.
        self.node = f"{self.service}-{os.urandom(8).hex()}"
        # A worker that Ray starts "nice" loses the CPU to every other process under load.
        if settings.ray.address != "local" and os.nice(0) > 0:
            sys.stderr.write("warning: RAY_worker_niceness is not 0: this actor yields the CPU\n")
        try:
            self.identity = await self.identify()
            key = key_of(settings)
            if key is not None:
                self.passes = platform(key, self.service)
                trust = Trust(
                    self.dialer(), self.bootstrap.auths, settings.auth, platform=key.public
                )
                self.trust = await self._stack.enter_async_context(trust)
            endpoints = await self.open()
            if self.trust is not None:
                endpoints.callers = self.trust.callers(self.service)
            backend = getattr(self, "backend", None)
            if isinstance(backend, Examined):
                endpoints.examine(backend.examine)
            self.host = await self._stack.enter_async_context(self._host(endpoints))
        except BaseException:
            await self._stack.aclose()
            raise

    async def identify(self) -> Secured | None:
        """Get what this member listens and dials with where TCP is TLS; None where it is not."""
        own = identified(self.settings, self.service, self.node)
        return await self._stack.enter_async_context(own)

    async def open(self) -> Endpoints:
        """Open the backend on ``self._stack`` and give its wire face."""
        raise NotImplementedError

    @property
    def bootstrap(self) -> Bootstrap:
        boot = bootstrap(self.settings, {})
        if self.passes is None:
            return boot
        return replace(boot, platform=self.passes.key.public)

    def dialer(self) -> Dialer:
        return WireDialer(
            limits=limits_of(self.settings),
            identity=self.identity,
            credentials=self._credentials,
        )

    @property
    def _credentials(self) -> Credentials | None:
        return None if self.passes is None else self.passes.itself

    async def network(self) -> tuple[Network, Table]:
        """A caller of other services with its own watched table, closed with this member."""
        dialer = self.dialer()
        table = Table()
        await self._stack.enter_async_context(Follower(dialer, self.bootstrap.routers, table))
        network = Network(table, dialer, host=self.settings.host, settings=self.settings.network)
        self._stack.push_async_callback(network.close)
        return network, table

    async def gate(self, kind: Kind, members: int) -> Gate:
        """What knows how much namespaces may keep here, and counts with all ``members`` what they
        do, closed with this member."""
        network, _ = await self.network()
        gate = Gate(kinds=(kind,), doors=members)
        await self._stack.enter_async_context(Supply(gate, network, own=self.settings.namespace))
        return gate

    def _host(self, endpoints: Endpoints) -> Host:
        return Host(
            service=self.service,
            endpoints=endpoints,
            registry_addresses=self.bootstrap.registry,
            run_dir=self.settings.run,
            node_id=self.node,
            socket_name=f"{self.service}-{self.index}",
            identity=self.identity,
            host=self.settings.host,
            address=self.bootstrap.address,
            port=self._port(),
            metadata={"platform": "true", "pid": str(os.getpid())},
            limits=limits_of(self.settings),
            ttl=self.settings.registry.ttl,
            drain=DRAIN,
            credentials=self._credentials,
        )

    def _port(self) -> int:
        """Where other machines begin, they must know it before they know anything; else any."""
        network = self.settings.network
        if self.service == "registry" and network.registry_addresses:
            return network.registry_port + self.index
        if self.service == "router" and network.router_addresses:
            return network.router_port + self.index
        if self.service == "auth" and network.auth_addresses:
            return network.auth_port + self.index
        if self.service == "certs" and network.certs_addresses:
            return network.certs_port
        return 0

    # -- verbs that every member has on its handle -------------------------------------------

    async def ping(self) -> dict[str, Any]:
        """Where and what this member is."""
        return {
            "service": self.service,
            "index": self.index,
            "host": self.settings.host,
            "pid": os.getpid(),
            "addresses": list(self.addresses()),
        }

    def addresses(self) -> Sequence[str]:
        return tuple(self.host.addresses)

    async def wait(self) -> None:
        """Return when the member is stopped in good order; the supervisor of the pool parks a
        call here, because Ray answers it with an error within milliseconds of a death."""
        await self._stopped.wait()

    async def stop(self) -> None:
        """Deregister, finish what is being served, release the backend."""
        await self._stack.aclose()
        self._stopped.set()
