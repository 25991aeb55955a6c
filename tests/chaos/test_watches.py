"""Watches of the store, of config and of the registry are ordered, unique and without a gap, also
over ``kill -9`` of whoever serves them and of the watcher, which goes on after what it has kept."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from micro_ray.network.network import Network
from micro_ray.wire.config import RemoteConfig
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.registry import Attachment, RemoteRegistry
from micro_ray.wire.store import RemoteStore
from tests.chaos.watcher import SERIAL, sessions, sights
from tests.chaos.watches import Session, Sight, disagreements, faults, registry_faults
from tests.chaos.writers import ConfigWriter, NodeWriter, StoreWriter, Writer
from tests.fixtures import etcd
from tests.fixtures.members import Town, addresses, caller
from tests.fixtures.postgres import server
from tests.fixtures.registries import instance
from tests.fixtures.wait import eventually

#: How often each process is killed, and what repeats the choices; scripts/linearizable asks for
#: more.
ROUNDS = int(os.environ.get("MICRO_CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("MICRO_CHAOS_SEED", "0")) or time.time_ns() % 2**32
WRITERS = WATCHERS = 2

pytestmark = pytest.mark.timeout(60 + 40 * ROUNDS)


@asynccontextmanager
async def watched(town: Town, noun: str, start: int = 0) -> AsyncIterator[list[Path]]:
    """Processes that watch everything; where they write what they see."""
    logs = [town.folder / f"watcher-{i}.seen" for i in range(WATCHERS)]
    members = json.dumps(town.members)
    for i, log in enumerate(logs):
        await town.start(
            f"watcher-{i}", "tests.chaos.watcher", noun, str(town.folder), members, str(log),
            str(start),
        )  # fmt: skip
    await eventually(lambda: all(log.exists() for log in logs), within=20)
    yield logs


def written(writers: list[Writer]) -> int:
    return sum(len(writer.writes) for writer in writers)


@asynccontextmanager
async def writing(writers: list[Writer]) -> AsyncIterator[None]:
    """All of them write meanwhile."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(writer.run(stop)) for writer in writers]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


#: Kills what serves the watchers, by name.
Kills = Mapping[str, Callable[[], Awaitable[None]]]


async def killing(town: Town, writers: list[Writer], served_by: Kills) -> None:
    """Each process is killed, a part and a watcher at a time, while there is writing."""
    chance = random.Random(SEED)

    async def more() -> None:
        goal = written(writers) + chance.randrange(10, 40)
        await eventually(lambda: written(writers) > goal, within=20)

    async with writing(writers):
        for _ in range(ROUNDS):
            watchers = [name for name in town.names if name.startswith("watcher")]
            parts = sorted(served_by)
            chance.shuffle(parts)
            while parts or watchers:
                await more()
                pair = [served_by[parts.pop()]()] if parts else []
                pair += [town.kill(watchers.pop())] if watchers else []
                await asyncio.gather(*pair)
        await more()
    print(f"\nseed {SEED}: {written(writers)} writes, {ROUNDS} kills of each part")


def kills_of(town: Town) -> dict[str, Callable[[], Awaitable[None]]]:
    """Of its members."""
    return {name: functools.partial(town.kill, name) for name in town.names}


async def reached(logs: list[Path], newest: Callable[[], Awaitable[int]]) -> list[list[Sight]]:
    """What the watchers saw, once they have seen the newest."""
    goal = await newest()

    def all_there() -> bool:
        return all(seen and seen[-1].revision >= goal for seen in map(sights, logs))

    await eventually(all_there, within=30, every=0.1)
    return [sights(log) for log in logs]


# -- the store and config ------------------------------------------------------------------------


@asynccontextmanager
async def town_of(
    way: str, services: list[str]
) -> AsyncIterator[tuple[Town, Network, dict[str, Callable[[], Awaitable[None]]]]]:
    """Members over a store of this kind, and how to kill them: not the store that is in memory,
    which takes all with it, but the server of a database."""
    members = dict.fromkeys(services, 2)
    async with AsyncExitStack() as stack:
        url = f"{way}://"
        if way == "memory":
            members["store"] = 1
        elif way == "postgres":
            database = stack.enter_context(server())
            url = database.url()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wt-"))
        town = Town(Path(folder), members, {"store.url": url, "config.history": 10_000})
        await stack.enter_async_context(town.running())
        network = await stack.enter_async_context(caller(town.folder, members))
        kills = kills_of(town)
        if way == "memory":
            del kills["store-0"]
        elif way == "postgres":

            async def back() -> bool:
                await asyncio.to_thread(database.start)
                return True

            async def crash() -> None:
                await asyncio.to_thread(database.kill)
                # Not before the children of the one that died have gone.
                await eventually(back, within=30, every=0.2)

            kills["database"] = crash
        yield town, network, kills


@pytest.mark.parametrize("way", ["memory", "sqlite", "postgres"])
async def test_store(way: str) -> None:
    async with town_of(way, ["store"]) as (town, network, kills):
        store = RemoteStore(network)
        writers: list[Writer] = [StoreWriter(store, f"w{i}", SEED + i) for i in range(WRITERS)]
        async with watched(town, "store") as logs:
            await killing(town, writers, kills)
            for seen in await reached(logs, store.revision):
                assert faults([w for writer in writers for w in writer.writes], seen) == []


@pytest.mark.parametrize("way", ["memory", "sqlite", "postgres"])
async def test_config(way: str) -> None:
    async with town_of(way, ["store", "config"]) as (town, network, kills):
        config = RemoteConfig(network)
        writers: list[Writer] = [ConfigWriter(config, f"w{i}", SEED + i) for i in range(WRITERS)]
        async with watched(town, "config") as logs:
            await killing(town, writers, kills)
            for seen in await reached(logs, config.version):
                assert faults([w for writer in writers for w in writer.writes], seen) == []


# -- the registry --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How a registry is kept: its members' settings, how many there are, whether its revisions are
    without holes, and whether a node that nobody renews may be seen to go."""

    settings: dict[str, object] = field(default_factory=dict)
    members: int = 1
    dense: bool = True
    expires: bool = True


@asynccontextmanager
async def in_memory() -> AsyncIterator[Place]:
    yield Place()


@asynccontextmanager
async def in_etcd() -> AsyncIterator[Place]:
    """Its revisions are etcd's, which counts leases and others' keys too."""
    async with etcd.server() as up:
        yield Place(settings={"registry.url": f"etcd://{up.address}"}, members=2, dense=False)


#: Every way to keep a registry.
PLACES = {"memory": in_memory, "etcd": in_etcd}


@pytest.fixture(params=sorted(PLACES))
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with PLACES[request.param]() as opened:
        yield opened


@asynccontextmanager
async def nodes(place: Place) -> AsyncIterator[tuple[Town, RemoteRegistry]]:
    """The registry's members, and some nodes that hold their registration."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wt-"))
        town = Town(Path(folder), {"registry": place.members}, place.settings)
        where = addresses(town.folder, "registry", place.members)
        registry = RemoteRegistry(WireDialer(), where)
        await stack.enter_async_context(town.running())
        stack.push_async_callback(registry.close)
        for node in HELD:
            held = instance("held", node, metadata={SERIAL: HELD[node]})
            await stack.enter_async_context(Attachment(WireDialer(), where, held))
        yield town, registry


HELD = {f"held-{i}": "held" for i in range(3)}


async def test_registry(place: Place) -> None:
    """Some nodes hold their registration, others come and go. A registry that forgot all when it
    was killed has a new epoch: its snapshot and what follows lead to the same end."""
    async with nodes(place) as (town, registry):
        kills = kills_of(town)
        async with watched(town, "registry") as logs:
            writers: list[Writer] = [
                NodeWriter(registry, f"n{i}", SEED + i) for i in range(WRITERS)
            ]
            await killing(town, writers, kills)
            await check(place, registry, writers, logs)


async def test_registry_that_went_on_without_a_watcher(place: Place) -> None:
    """When the watcher comes back, the registry is in another life, if it has several, and further
    than the watcher had come in the one before."""
    async with nodes(place) as (town, registry), watched(town, "registry") as logs:
        writers: list[Writer] = [NodeWriter(registry, f"n{i}", SEED + i) for i in range(WRITERS)]
        async with writing(writers):
            await eventually(lambda: written(writers) > 10, within=20)
            await town.down("watcher-0")
            had = last(sessions(logs[0])[-1])
            await town.kill("registry-0")

            async def further() -> bool:
                return (await registry.snapshot()).revision > had + 10

            await eventually(further, within=20)
            await town.up("watcher-0")
        await check(place, registry, writers, logs)


def last(session: Session) -> int:
    return session.sights[-1].revision if session.sights else session.revision


async def check(
    place: Place, registry: RemoteRegistry, writers: list[Writer], logs: list[Path]
) -> None:
    end = await settled(registry, writers)

    def at_the_end() -> bool:
        return all(sessions(log)[-1].end == end for log in logs)

    await eventually(at_the_end, within=20, every=0.1)
    writes = [w for writer in writers for w in writer.writes]
    seen = [sessions(log) for log in logs]
    for one in seen:
        found = registry_faults(writes, HELD, one, dense=place.dense, expires=place.expires)
        assert found == []
    assert disagreements(seen) == []


async def settled(registry: RemoteRegistry, writers: list[Writer]) -> dict[str, str]:
    """What there is once the writers have seen to theirs and the held ones are back."""
    wanted = {**HELD}
    for writer in writers:
        wanted |= await writer.settle()

    async def as_wanted() -> bool:
        found = await registry.snapshot()
        return wanted == {i.node.id: i.metadata[SERIAL] for i in found.instances}

    await eventually(as_wanted, within=20, every=0.1)
    return wanted
