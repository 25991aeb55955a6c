"""Watches of the store, of config and of the registry are ordered, unique and without a gap, also
over ``kill -9`` of whoever serves them and of the watcher, which goes on after what it has kept."""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from micro_ray.network.network import Network
from micro_ray.wire.client import WireDialer
from micro_ray.wire.config import RemoteConfig
from micro_ray.wire.registry import Attachment, RemoteRegistry
from micro_ray.wire.store import RemoteStore
from tests.chaos.watcher import SERIAL, sessions, sights
from tests.chaos.watches import Sight, disagreements, faults, registry_faults
from tests.chaos.writers import ConfigWriter, NodeWriter, StoreWriter, Writer
from tests.fixtures.members import Town, addresses, caller
from tests.fixtures.postgres import Postgres, schema
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


async def killing(town: Town, writers: list[Writer], spared: str = "") -> None:
    """Each process is killed, a member and a watcher at a time, while there is writing."""
    chance = random.Random(SEED)
    stop = asyncio.Event()
    tasks = [asyncio.create_task(writer.run(stop)) for writer in writers]

    def written() -> int:
        return sum(len(writer.writes) for writer in writers)

    async def more() -> None:
        goal = written() + chance.randrange(10, 40)
        await eventually(lambda: written() > goal or any(t.done() for t in tasks), within=20)

    try:
        for _ in range(ROUNDS):
            watchers = [name for name in town.names if name.startswith("watcher")]
            members = [n for n in town.names if n not in watchers and n != spared]
            chance.shuffle(members)
            while members or watchers:
                await more()
                pair = [some.pop() for some in (members, watchers) if some]
                await asyncio.gather(*map(town.kill, pair))
        await more()
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    print(f"\nseed {SEED}: {written()} writes, {town.kills} killed")


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
    way: str, services: list[str], request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Town, Network, str]]:
    """Members over a store of this kind, and the one of them that takes all with it when it goes:
    the store that is in memory."""
    members = dict.fromkeys(services, 2)
    async with AsyncExitStack() as stack:
        url, spared = f"{way}://", ""
        if way == "postgres":
            postgres: Postgres = request.getfixturevalue("postgres")
            url = postgres.url(await stack.enter_async_context(schema(postgres.url())))
        elif way == "memory":
            members["store"], spared = 1, "store-0"
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wt-"))
        settings = {"store.url": url, "config.history": 10_000}
        town = Town(Path(folder), members, settings)
        await stack.enter_async_context(town.running())
        network = await stack.enter_async_context(caller(town.folder, members))
        yield town, network, spared


@pytest.mark.parametrize("way", ["memory", "sqlite", "postgres"])
async def test_store(way: str, request: pytest.FixtureRequest) -> None:
    async with town_of(way, ["store"], request) as (town, network, spared):
        store = RemoteStore(network)
        writers: list[Writer] = [StoreWriter(store, f"w{i}", SEED + i) for i in range(WRITERS)]
        async with watched(town, "store") as logs:
            await killing(town, writers, spared)
            for seen in await reached(logs, store.revision):
                assert faults([w for writer in writers for w in writer.writes], seen) == []


@pytest.mark.parametrize("way", ["memory", "sqlite", "postgres"])
async def test_config(way: str, request: pytest.FixtureRequest) -> None:
    async with town_of(way, ["store", "config"], request) as (town, network, spared):
        config = RemoteConfig(network)
        writers: list[Writer] = [ConfigWriter(config, f"w{i}", SEED + i) for i in range(WRITERS)]
        async with watched(town, "config") as logs:
            await killing(town, writers, spared)
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


#: Every way to keep a registry.
PLACES = {"memory": in_memory}


@pytest.fixture(params=sorted(PLACES))
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with PLACES[request.param]() as opened:
        yield opened


async def test_registry(place: Place) -> None:
    """Some nodes hold their registration, others come and go. A registry that forgot all when it
    was killed has a new epoch: its snapshot and what follows lead to the same end."""
    with tempfile.TemporaryDirectory(prefix="wt-") as folder:
        town = Town(Path(folder), {"registry": place.members}, place.settings)
        where = addresses(town.folder, "registry", place.members)
        registry = RemoteRegistry(WireDialer(), where)
        held = {f"held-{i}": "held" for i in range(3)}
        writers: list[Writer] = [NodeWriter(registry, f"n{i}", SEED + i) for i in range(WRITERS)]
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(town.running())
            stack.push_async_callback(registry.close)
            for node in held:
                known = instance("held", node, metadata={SERIAL: "held"})
                await stack.enter_async_context(Attachment(WireDialer(), where, known))
            logs = await stack.enter_async_context(watched(town, "registry"))
            await killing(town, writers)
            end = await settled(registry, {**held}, writers)
            await eventually(
                lambda: all(sessions(log)[-1].end == end for log in logs), within=20, every=0.1
            )
            writes = [w for writer in writers for w in writer.writes]
            seen = [sessions(log) for log in logs]
            for one in seen:
                assert (
                    registry_faults(
                        writes, held, one, dense=place.dense, expires=place.expires
                    )
                    == []
                )  # fmt: skip
            assert disagreements(seen) == []


async def settled(
    registry: RemoteRegistry, held: dict[str, str], writers: list[Writer]
) -> dict[str, str]:
    """What there is once the writers have seen to theirs and the held ones are back."""
    for writer in writers:
        held |= await writer.settle()

    async def as_held() -> bool:
        found = await registry.snapshot()
        return held == {i.node.id: i.metadata[SERIAL] for i in found.instances}

    await eventually(as_held, within=20, every=0.1)
    return held
