"""What keeps a caller's table up to date: over frames, from whichever router answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from micro_ray.registry import Endpoint
from micro_ray.registry.memory import MemoryRegistry
from micro_ray.router import Delta, Route
from micro_ray.router.derive import Router
from micro_ray.router.table import Table
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.registry import RemoteRegistry
from micro_ray.wire.router import Follower
from micro_ray.wire.server import Incoming, Server
from tests.fixtures.lines import Place, RegistryPlace, router_at
from tests.fixtures.registries import instance
from tests.fixtures.wait import eventually


@pytest.fixture
async def registry() -> AsyncIterator[MemoryRegistry]:
    registry = MemoryRegistry()
    yield registry
    await registry.close()


@pytest.fixture
async def routers(folder: Path, registry: MemoryRegistry) -> AsyncIterator[list[Place]]:
    """Two routers of one registry, each on its socket."""
    async with AsyncExitStack() as stack:
        places = []
        for number in range(2):
            router = await stack.enter_async_context(Router(registry))
            place = router_at(folder / f"router-{number}.sock", router)
            places.append(await stack.enter_async_context(place))
        yield places


class Recorded(Table):
    """A table that remembers which routes it has had."""

    def __init__(self) -> None:
        super().__init__()
        self.past: list[list[str]] = []

    def apply(self, delta: Delta) -> bool:
        applied = super().apply(delta)
        self.past.append([route.id for route in self.routes()])
        return applied


class Followed:
    def __init__(self, *places: Place) -> None:
        self.table = Recorded()
        self.follower = Follower(WireDialer(), [p.address for p in places], self.table)

    async def __aenter__(self) -> Followed:
        await self.follower.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.follower.__aexit__(*exc)

    async def has(self, *ids: str, service: str = "greeter") -> None:
        await eventually(lambda: [r.id for r in self.table.lookup("micro", service)] == sorted(ids))

    async def ready(self) -> None:
        await asyncio.wait_for(self.follower.ready.wait(), 5)


async def test_it_has_what_the_router_has(routers: list[Place], registry: MemoryRegistry) -> None:
    await registry.register(instance(node="a", metadata={"k": "ä"}))
    async with Followed(*routers) as one, Followed(*routers) as two:
        await one.ready()
        await two.ready()
        for number in range(20):
            await registry.register(instance(node=f"n{number}"))
        await registry.deregister("micro", "a")
        for each in (one, two):
            await each.has(*(f"n{number}" for number in range(20)))
            assert not each.table.stale
        assert one.table.entries() == two.table.entries()


async def test_it_goes_to_another_router(routers: list[Place], registry: MemoryRegistry) -> None:
    await registry.register(instance(node="a"))
    async with Followed(*routers) as followed:
        await followed.ready()
        for number, place in enumerate(routers * 2):
            other = routers[(number + 1) % 2]
            await place.close()
            await registry.register(instance(node=f"n{number}"))
            await eventually(lambda n=number: followed.table.has("micro", f"n{n}"), within=3)
            await eventually(lambda: not followed.table.stale)
            await place.open()
            assert other is not place


async def test_with_no_router_the_table_stays(
    routers: list[Place], registry: MemoryRegistry
) -> None:
    await registry.register(instance(node="a"))
    async with Followed(*routers) as followed:
        await followed.has("a")
        version = followed.table.version
        for place in routers:
            await place.close()
        await eventually(lambda: followed.table.stale)
        await registry.register(instance(node="b"))
        assert followed.table.version == version
        await followed.has("a")
        assert followed.table.known("micro", "greeter")
        await routers[1].open()
        await followed.has("a", "b")
        await eventually(lambda: not followed.table.stale)


async def test_it_waits_for_the_first_router(
    routers: list[Place], registry: MemoryRegistry
) -> None:
    for place in routers:
        await place.close()
    async with Followed(*routers) as followed:
        await eventually(lambda: followed.table.stale)
        assert not followed.follower.ready.is_set()
        assert followed.table.version == 0
        await routers[0].open()
        await followed.ready()


async def test_no_address_at_all_is_no_loop() -> None:
    followed = Followed()
    async with followed:
        await eventually(lambda: followed.table.version == 0)
    assert not followed.follower.ready.is_set()


async def test_ready_is_for_a_table_that_followed_a_registry(folder: Path) -> None:
    registry = RegistryPlace(folder / "registry.sock")
    remote = RemoteRegistry(WireDialer(), [registry.address])
    async with (
        Router(remote) as router,
        router_at(folder / "router.sock", router) as place,
        Followed(place) as followed,
    ):
        await eventually(lambda: followed.table.version)
        assert followed.table.stale
        assert not followed.follower.ready.is_set()
        async with registry:
            await followed.ready()
            assert not followed.table.stale
    await remote.close()


async def test_a_router_that_knows_less_does_not_empty_the_table(
    folder: Path, registry: MemoryRegistry
) -> None:
    """It has just started, without a kept table, and reaches no registry."""
    await registry.register(instance(node="a"))
    nowhere = RemoteRegistry(WireDialer(), [f"unix:{folder}/none.sock"])
    async with Router(registry) as good, Router(nowhere) as fresh, AsyncExitStack() as stack:
        path = folder / "router.sock"
        place = await stack.enter_async_context(router_at(path, good))
        followed = await stack.enter_async_context(Followed(place))
        await followed.has("a")
        await place.close()
        await stack.enter_async_context(router_at(path, fresh))
        await eventually(lambda: followed.table.stale)
        await eventually(lambda: fresh._watchers)
        assert followed.table.has("micro", "a")
        # Once it has followed a registry, what it says counts, also that there is nothing.
        await registry.deregister("micro", "a")
        fresh._registry = registry
        await followed.has()
        assert not followed.table.stale
    await nowhere.close()


async def test_a_router_that_lost_the_registry_is_left_for_one_that_has_it(
    folder: Path, registry: MemoryRegistry
) -> None:
    await registry.register(instance(node="a"))
    lost = RegistryPlace(folder / "registry.sock")
    lost.registry = registry
    await lost.open(same=True)
    remote = RemoteRegistry(WireDialer(), [lost.address])
    async with (
        Router(remote) as first,
        Router(registry) as second,
        router_at(folder / "router-0.sock", first) as one,
        AsyncExitStack() as stack,
    ):
        two = router_at(folder / "router-1.sock", second)
        followed = await stack.enter_async_context(Followed(one, two))
        await followed.has("a")  # by the only one that listens
        await stack.enter_async_context(two)
        await lost.close()
        await eventually(lambda: second._watchers)
        await registry.register(instance(node="b"))
        await followed.has("a", "b")
        assert not followed.table.stale
    await remote.close()


async def test_without_a_registry_followers_stay_where_they_are(folder: Path) -> None:
    """They look at each router once, and are told as soon as there is a registry again."""
    place = RegistryPlace(folder / "registry.sock")
    async with AsyncExitStack() as stack:
        await place.open()
        stack.push_async_exit(place.__aexit__)
        await place.registry.register(instance(node="a"))
        routers, places = [], []
        for number in range(2):
            remote = RemoteRegistry(WireDialer(), [place.address])
            stack.push_async_callback(remote.close)
            routers.append(await stack.enter_async_context(Router(remote)))
            at = router_at(folder / f"router-{number}.sock", routers[-1])
            places.append(await stack.enter_async_context(at))
        followed = await stack.enter_async_context(Followed(*places))
        await followed.has("a")
        await place.close()
        await eventually(lambda: followed.table.stale and followed.follower._stale >= 2)
        seen = followed.follower._stale
        await asyncio.sleep(0.3)  # in which it would look again and again
        assert followed.follower._stale <= seen + 1
        await followed.has("a")
        await place.open(same=True)
        await place.registry.register(instance(node="b"))
        await followed.has("a", "b")


# -- what a router may send ------------------------------------------------------------------------


@pytest.fixture
def script() -> list[list[Delta]]:
    """What a router of the test's own says to each who watches, one after the other."""
    return []


@pytest.fixture
async def scripted(folder: Path, script: list[list[Delta]]) -> AsyncIterator[Place]:
    def make() -> Endpoints:
        async def watch() -> AsyncIterator[Delta]:
            for delta in script.pop(0) if script else []:
                yield delta
            await asyncio.Event().wait()

        endpoints = Endpoints("router")
        endpoints.add("Router.Watch", watch)
        return endpoints

    async with Place(folder / "scripted.sock", make) as place:
        yield place


def delta(revision: int, *nodes: str, full: bool = False, more: bool = False) -> Delta:
    routes = tuple(Route(id=node, namespace="micro", service="greeter") for node in nodes)
    return Delta(epoch="e", revision=revision, routes=routes, full=full, more=more)


async def test_a_gap_is_never_applied(scripted: Place, script: list[list[Delta]]) -> None:
    """It connects again and gets the whole table."""
    script += [
        [delta(1, "a", full=True), delta(2, "b"), delta(4, "gap")],
        [delta(9, "z", full=True), delta(10, "y")],
    ]
    async with Followed(scripted) as followed:
        await followed.has("y", "z")
    assert followed.table.past == [["a"], ["a", "b"], ["a", "b"], ["z"], ["y", "z"]]


async def test_a_delta_in_parts_counts_when_it_is_whole(
    scripted: Place, script: list[list[Delta]]
) -> None:
    """Cut in the middle, nothing of it counts."""
    script += [
        [delta(1, "a", "b", full=True), delta(5, "c", full=True, more=True)],
        [delta(7, "d", full=True, more=True), delta(7, "e", full=True)],
    ]
    async with Followed(scripted) as followed:
        await followed.has("a", "b")
        await scripted.close()
        await eventually(lambda: followed.table.stale)
        assert [r.id for r in followed.table.routes()] == ["a", "b"]
        await scripted.open()
        await followed.has("d", "e")


async def test_a_table_larger_than_a_message(
    routers: list[Place], registry: MemoryRegistry
) -> None:
    """More than the 16 MiB that one message may have."""
    for number in range(20):
        endpoint = Endpoint(name="A.B", request={"d": "x" * 900_000})
        await registry.register(instance(f"s{number}", f"n{number}", endpoints=(endpoint,)))
    async with Followed(*routers) as followed:
        await eventually(lambda: followed.table.size == 20)
        found = followed.table.entry("micro", "s19")
        assert found is not None
        assert found.endpoints[0].request == {"d": "x" * 900_000}
        await registry.register(instance())
        await followed.has("n1")


async def test_garbage_from_a_router(folder: Path, routers: list[Place]) -> None:
    """It is passed over for the next one."""

    async def garbage(incoming: Incoming) -> None:
        await incoming.send(b"\xff\x00")
        await incoming.end()

    async with Server(garbage) as server:
        bad = Place(folder / "bad.sock", lambda: Endpoints("router"))
        await server.listen(bad.address)
        for _ in range(5):  # whichever of the two it begins with
            async with Followed(bad, routers[0]) as followed:
                await followed.ready()


async def test_leaving_leaves_nothing(routers: list[Place]) -> None:
    before = asyncio.all_tasks()
    for _ in range(3):
        async with Followed(*routers) as followed:
            await followed.ready()
    await eventually(lambda: asyncio.all_tasks() <= before)
