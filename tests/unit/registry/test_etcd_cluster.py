"""Three members of etcd, some of them killed, stopped or cut off, and the platform before them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from micro_ray.errors import MicroError, Unavailable
from micro_ray.network.network import Network
from micro_ray.registry.etcd import EtcdRegistry
from micro_ray.registry.etcd_url import parse
from micro_ray.router.derive import Router
from micro_ray.router.table import Table
from micro_ray.wire import registry as face
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.host import Host
from micro_ray.wire.registry import RemoteRegistry
from micro_ray.wire.router import Follower
from micro_ray.wire.server import Server
from tests.fixtures.etcd import Cluster, cluster, server
from tests.fixtures.history import watched
from tests.fixtures.lines import router_at
from tests.fixtures.nats import free_ports
from tests.fixtures.registries import instance
from tests.fixtures.wait import eventually


def registry(*addresses: str, **options: Any) -> EtcdRegistry:
    return EtcdRegistry(parse(f"etcd://{','.join(addresses)}"), **options)


async def test_a_member_that_is_cut_off_from_the_others() -> None:
    """It answers and knows nothing: calls and watches leave it, or say so if they know no other."""
    async with cluster() as three:
        leader = await three.leader()
        alone = next(member for member in three.members if member is not leader)
        rest = [member.address for member in three.members if member is not alone]
        async with (
            registry(*rest) as healthy,
            registry(alone.address, *rest, attempt=0.5) as behind,
            registry(alone.address, patience=2, attempt=0.5) as only,
            watched(behind) as history,
            watched(only) as blind,
        ):
            await healthy.register(instance())
            await eventually(lambda: history.changes == 1 and blind.changes == 1)
            assert await only.renew("micro", ["n1"]) == []
            await three.cut_off(alone)
            await healthy.register(instance(node="n2"))
            async with asyncio.timeout(10):
                await behind.register(instance(node="n3"))
                assert await behind.renew("micro", ["n1", "n2", "n3"]) == []
            await eventually(lambda: history.changes == 3, within=20)
            assert history.begun == 1
            error = await eventually(lambda: blind.error, within=20)
            assert isinstance(error, Unavailable)
            for verb in (only.snapshot(), only.renew("micro", ["n1"])):
                with pytest.raises(Unavailable, match=f"waiting for etcd at {alone.address}"):
                    await verb
            three.join_again()
            await eventually(lambda: history.same_as(only), within=20)


async def test_the_loss_of_one_of_three(capsys: pytest.CaptureFixture[str]) -> None:
    """The leader is killed, then another stopped, under constant writing: nothing fails, and nobody
    waits for longer than a new leader takes."""
    gaps = []
    async with (
        cluster() as three,
        registry(*three.addresses, patience=15) as here,
        watched(here) as history,
    ):
        written = 0

        async def write(name: str) -> None:
            nonlocal written
            number = 0
            while True:
                begun = time.monotonic()
                await here.register(instance(node=name, weight=number % 1000))
                assert await here.renew("micro", [name]) == []
                gaps.append(time.monotonic() - begun)
                number += 1
                written += 1

        writers = [asyncio.create_task(write(f"w{i}")) for i in range(3)]
        try:
            for end in ("kill", "freeze"):
                member = await three.leader()
                if end == "kill":
                    await member.kill()
                else:
                    member.freeze()
                after = written
                await eventually(lambda n=after: written > n + 100, within=20)
                if end == "kill":
                    await member.start()
                else:
                    member.thaw()
            assert not any(writer.done() for writer in writers)
        finally:
            for writer in writers:
                writer.cancel()
            failed = await asyncio.gather(*writers, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in failed), failed
        await eventually(lambda: history.same_as(here), within=20)
        assert history.begun == 1
    with capsys.disabled():
        print(f" [{written} writes, one of three lost twice; the longest took {max(gaps):.2f} s]")
    assert max(gaps) < 15


@asynccontextmanager
async def platform(three: Cluster, folder: Path) -> AsyncIterator[AsyncExitStack]:
    """Two registries over etcd and a router, on sockets in ``folder``."""
    async with AsyncExitStack() as stack:
        for number in range(2):
            here = await stack.enter_async_context(registry(*three.addresses, patience=2))
            wire = await stack.enter_async_context(Server(face.endpoints(here).handler))
            await wire.listen(f"unix:{folder}/registry-{number}.sock")
        remote = RemoteRegistry(WireDialer(), places(folder))
        stack.push_async_callback(remote.close)
        router = await stack.enter_async_context(Router(remote))
        await stack.enter_async_context(router_at(folder / "router.sock", router))
        yield stack


def places(folder: Path) -> list[str]:
    return [f"unix:{folder}/registry-{number}.sock" for number in range(2)]


async def host(stack: AsyncExitStack, folder: Path, id: str) -> Host:
    async def who() -> str:
        """Which node this is."""
        return id

    endpoints = Endpoints("node").add("Node.Who", who)
    return await stack.enter_async_context(
        Host(
            service="node", endpoints=endpoints, registry_addresses=places(folder),
            run_dir=folder, node_id=id, ttl=3,
        )
    )  # fmt: skip


async def test_all_three_gone_and_back() -> None:
    """Calls go on from the last good table, for longer than a registration lives; when etcd is back
    all that lives is known, and what died meanwhile goes."""
    with TemporaryDirectory(prefix="eg-") as name:
        folder = Path(name)
        async with cluster() as three, platform(three, folder) as stack:
            await (await host(stack, folder, "stays")).registered(10)
            dying = AsyncExitStack()
            dies = await host(dying, folder, "dies")
            await dies.registered(10)
            table = Table()
            follower = Follower(WireDialer(), [f"unix:{folder}/router.sock"], table)
            await stack.enter_async_context(follower)
            network = Network(table, WireDialer())
            stack.push_async_callback(network.close)

            def known() -> list[str]:
                return sorted(route.id for route in table.lookup("micro", "node"))

            await eventually(lambda: known() == ["dies", "stays"])
            for member in three.members:
                await member.kill()
            await eventually(lambda: table.stale, within=15)
            await dying.aclose()
            calls, end = 0, time.monotonic() + 4
            while time.monotonic() < end:
                assert await network.call("node", "Node.Who", b"{}", timeout=5) == b'"stays"'
                calls += 1
            assert calls > 100
            assert "stays" in known()
            for member in three.members:
                await member.start(ready=False)
            await eventually(lambda: not table.stale, within=30)
            assert "stays" in known()
            await (await host(stack, folder, "new")).registered(20)
            await eventually(lambda: known() == ["new", "stays"], within=50)
            assert await network.call("node", "Node.Who", b"{}", timeout=5) in (
                b'"stays"', b'"new"',
            )  # fmt: skip


async def test_a_registry_that_lost_etcd_is_left_for_one_that_has_it() -> None:
    """Nodes and routers go to another member of the pool, though the first one answers."""
    (port,) = free_ports(1)
    with TemporaryDirectory(prefix="ee-") as name:
        folder = Path(name)
        async with server() as etcd, AsyncExitStack() as stack:
            for number, address in enumerate((f"127.0.0.1:{port}", etcd.address)):
                here = await stack.enter_async_context(registry(address, patience=0.3))
                wire = await stack.enter_async_context(Server(face.endpoints(here).handler))
                await wire.listen(f"unix:{folder}/registry-{number}.sock")
            await (await host(stack, folder, "n1")).registered(10)
            remote = RemoteRegistry(WireDialer(), places(folder))
            stack.push_async_callback(remote.close)
            with pytest.raises(MicroError):
                await remote.snapshot()
            assert [i.node.id for i in (await remote.snapshot()).instances] == ["n1"]
