"""Nodes come and go under constant calls: registry, router, hosts and callers as they are."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from micro_ray.errors import BadGateway, MicroError
from micro_ray.network.network import Network
from micro_ray.router.derive import Router
from micro_ray.router.table import Table
from micro_ray.sdk.testing import Here
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.host import Host
from micro_ray.wire.registry import RemoteRegistry
from micro_ray.wire.router import Follower
from tests.fixtures.lines import Place, RegistryPlace, registry_at, router_at
from tests.fixtures.node import node
from tests.fixtures.wait import eventually


class Load:
    """Calls, one after the other in some tasks, and what became of them."""

    def __init__(self, network: Network, service: str, endpoint: str) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[MicroError] = []
        self._network, self._service, self._endpoint = network, service, endpoint

    async def _work(self) -> None:
        while True:
            try:
                answer = await self._network.call(self._service, self._endpoint, b"{}", timeout=5)
                self.answers[answer.decode().strip('"')] += 1
            except MicroError as error:
                self.failures.append(error)

    @asynccontextmanager
    async def under_way(self, tasks: int = 8) -> AsyncIterator[None]:
        workers = [asyncio.create_task(self._work()) for _ in range(tasks)]
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def more(self, count: int = 200) -> None:
        """Wait for more answers."""
        target = self.answers.total() + count
        await eventually(lambda: self.answers.total() >= target, within=10)


async def start(here: Here, id: str) -> AsyncExitStack:
    """A replica of ``rolling``; closing it lets it leave in good order."""

    async def who() -> str:
        await asyncio.sleep(0.005)
        return id

    stack = AsyncExitStack()
    host = await stack.enter_async_context(
        Host(
            service="rolling",
            endpoints=Endpoints("rolling").add("Rolling.Who", who),
            registry_addresses=here.bootstrap.registry,
            run_dir=here.bootstrap.run,
            node_id=id,
            drain=5.0,
        )
    )
    await host.registered(5)
    return stack


async def test_replacing_every_node_loses_no_call(here: Here) -> None:
    network = await here.network()
    load = Load(network, "rolling", "Rolling.Who")
    replicas = [await start(here, f"old-{number}") for number in range(3)]
    await eventually(lambda: len(network.table.lookup("micro", "rolling")) == 3)
    async with load.under_way():
        await load.more()
        for number in range(3):
            replicas.append(await start(here, f"new-{number}"))
            await load.more(50)
            await replicas.pop(0).aclose()
            await load.more(50)
    for replica in replicas:
        await replica.aclose()
    assert not load.failures
    assert set(load.answers) == {f"{age}-{n}" for age in ("old", "new") for n in range(3)}


async def test_replacing_the_only_node_loses_no_call(here: Here) -> None:
    """Callers wait for the next one, as long as the service is known."""
    network = await here.network()
    load = Load(network, "rolling", "Rolling.Who")
    replica = await start(here, "n0")
    await eventually(lambda: network.table.has("micro", "n0"))
    async with load.under_way():
        for number in range(1, 4):
            await load.more(50)
            await replica.aclose()
            replica = await start(here, f"n{number}")
        await load.more(50)
    await replica.aclose()
    assert not load.failures


@asynccontextmanager
async def town(folder: Path) -> AsyncIterator[tuple[RegistryPlace, Place, Network]]:
    """A registry, a router and a caller, each of which can be taken away."""
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(registry_at(folder / "registry.sock"))
        remote = RemoteRegistry(WireDialer(), [registry.address])
        stack.push_async_callback(remote.close)
        router = await stack.enter_async_context(Router(remote))
        place = await stack.enter_async_context(router_at(folder / "router.sock", router))
        table = Table()
        await stack.enter_async_context(Follower(WireDialer(), [place.address], table))
        network = Network(table, WireDialer())
        stack.push_async_callback(network.close)
        yield registry, place, network


async def test_killing_nodes_fails_only_what_they_were_doing(folder: Path) -> None:
    """kill -9 of real processes: a call in flight on one is lost with it, and no other."""
    workers = 8
    async with town(folder) as (_, _, network), node(folder, "stays"):
        load = Load(network, "node", "Node.Who")
        await eventually(lambda: network.table.has("micro", "stays"))
        async with load.under_way(workers):
            for number in range(3):
                async with node(folder, f"dies-{number}") as child:
                    await eventually(lambda n=number: load.answers[f"dies-{n}"] > 20)
                    child.kill()
                    await eventually(lambda n=number: not network.table.has("micro", f"dies-{n}"))
                await load.more()
    assert all(isinstance(error, BadGateway) for error in load.failures), load.failures
    assert len(load.failures) <= 3 * workers
    assert len(load.failures) < 0.05 * load.answers.total()


async def test_registry_and_router_may_go_under_load(folder: Path) -> None:
    async with town(folder) as (registry, router, network), node(folder, "a"), node(folder, "b"):
        load = Load(network, "node", "Node.Who")
        await eventually(lambda: network.table.size == 2)
        async with load.under_way():
            await registry.close()
            await load.more()
            await router.close()
            await eventually(lambda: network.table.stale)
            await load.more()
            await registry.open()  # empty
            await router.open()
            await eventually(lambda: not network.table.stale)
            await load.more()
            await eventually(lambda: len(registry.registry._leases) == 2)
            await load.more()
        assert network.table.size == 2
    assert not load.failures


async def test_a_node_that_dies_while_the_registry_is_gone_is_not_called_in_vain(
    folder: Path,
) -> None:
    """Nobody takes it out of the table; callers go round it by themselves."""
    async with town(folder) as (registry, _, network), node(folder, "stays"):
        load = Load(network, "node", "Node.Who")
        async with node(folder, "dies") as child:
            await eventually(lambda: network.table.size == 2)
            await registry.close()
            async with load.under_way():
                await load.more()
                child.kill()
                await child.wait()
                lost = len(load.failures)
                assert lost <= 8
                await load.more(500)
        assert len(load.failures) - lost <= 8
        assert network.table.has("micro", "dies")
        assert all(isinstance(error, BadGateway) for error in load.failures)
