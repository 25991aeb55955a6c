"""Histories of the store and of config are linearizable while their members are killed, lines to
the database are cut, and clients go away.

The short form takes some seconds a test; ``scripts/linearizable`` is the long form of 100,000 calls
each, without end to the kills.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path

import pytest

from micro_ray.store import Store
from micro_ray.store.postgres import PostgresStore
from micro_ray.store.sqlite import SqliteStore
from micro_ray.wire.config import RemoteConfig
from micro_ray.wire.store import RemoteStore
from tests.chaos.history import Clients
from tests.chaos.linearizable import Outcome, violations
from tests.chaos.registers import ConfigRegisters, StoreRegisters
from tests.fixtures.members import Town, caller
from tests.fixtures.postgres import Postgres, schema
from tests.fixtures.proxy import Proxy, proxy

#: Calls per test, and what repeats their choice; scripts/linearizable sets how many.
LONG = int(os.environ.get("MICRO_CHAOS_CALLS", "0"))
CALLS = LONG or 1500
#: What the end of a transaction has on the wire, and a put that is a transaction by itself: its
#: metadata, as a text of two bytes.
COMMITS = (b"COMMIT", b"\x00\x00\x00\x02{}")
SEED = int(os.environ.get("MICRO_CHAOS_SEED", "0")) or time.time_ns() % 2**32
#: Members that are killed at least, one after the other.
KILLS = 3

pytestmark = pytest.mark.timeout(60 + CALLS // 20)


async def run(
    clients: Clients,
    calls: int = CALLS,
    *,
    per_key: int = 1000,
    more: Callable[[], bool] = lambda: False,
) -> None:
    begun = time.monotonic()
    await clients.run(calls, per_key=per_key, more=more)
    ran = time.monotonic() - begun
    history = clients.history
    unknowns = sum(c.outcome is Outcome.UNKNOWN for c in history)
    print(
        f"\nseed {SEED}: {len(history)} calls in {ran:.1f} s, {unknowns} of unknown end,"
        f" {clients.refused} not done"
    )
    assert violations(history) == [], f"MICRO_CHAOS_SEED={SEED} repeats the calls"
    assert len({c.kind for c in history}) == 4
    assert any(c.outcome is Outcome.REFUSED for c in history)
    assert len(history) > calls * 0.9


@contextlib.asynccontextmanager
async def beside(trouble: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Trouble until the end. Raises what went wrong with it."""
    task = asyncio.create_task(trouble)
    try:
        yield
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
    if not isinstance(ended, asyncio.CancelledError):
        raise RuntimeError("the trouble ended by itself") from ended


# -- in one process ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def two_files() -> AsyncIterator[list[Store]]:
    with tempfile.TemporaryDirectory(prefix="ln-") as folder:
        async with SqliteStore(Path(folder)) as one, SqliteStore(Path(folder)) as two:
            yield [one, two]


async def test_sqlite() -> None:
    """Two stores over one file; clients go away in the middle of their writes."""
    async with two_files() as stores:
        ways = [StoreRegisters(store) for store in stores]
        clients = Clients(ways, count=8, keys=6, seed=SEED, impatient=0.01)
        # Each client that went away leaves a call of unknown end, which every later one may follow.
        await run(clients, per_key=200)


async def test_postgres(postgres: Postgres) -> None:
    """Two pools, one over a line that is cut at any moment and around commits, and a server that
    ends connections by itself."""
    async with (
        schema(postgres.url()) as name,
        proxy(postgres.port) as between,
        PostgresStore(postgres.url(name)) as near,
        PostgresStore(postgres.url(name, port=between.port)) as far,
        beside(cuts(between, postgres)),
    ):
        ways = [StoreRegisters(near), StoreRegisters(far)]
        await run(Clients(ways, count=8, keys=6, seed=SEED))
        assert between.count > 2, "no line was cut"


async def cuts(between: Proxy, postgres: Postgres) -> None:
    chance = random.Random(SEED)
    while True:
        await asyncio.sleep(chance.random() * 0.2)
        what = chance.randrange(4)
        if what == 0:
            between.cut()
        elif what == 1:
            await asyncio.to_thread(postgres.cut_all)
        elif what == 2:
            between.cuts_after[chance.choice(COMMITS)] = 1
        else:
            between.cuts_before[chance.choice(COMMITS)] = 1


# -- members that are killed ---------------------------------------------------------------------

#: Ends some connections to the database.
Cut = Callable[[random.Random], Awaitable[None]]


@contextlib.asynccontextmanager
async def database(way: str, request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Cut]]:
    """The URL of a store, and how to cut lines to its server."""
    if way == "sqlite":

        async def nothing(chance: random.Random) -> None:
            """There are no lines."""

        yield "sqlite://", nothing
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    async with schema(postgres.url()) as name, proxy(postgres.port) as between:

        async def cut(chance: random.Random) -> None:
            if chance.random() < 0.5:
                await asyncio.to_thread(postgres.cut_all)
            else:
                chance.choice([between.cuts_after, between.cuts_before])[chance.choice(COMMITS)] = 1

        yield postgres.url(name, port=between.port), cut


async def kills(town: Town, cut: Cut) -> None:
    """A member after the other, and lines between."""
    chance = random.Random(SEED)
    while True:
        for _ in range(2):
            await asyncio.sleep(chance.random() * 0.2)
            await cut(chance)
        await town.kill(chance.choice(town.names))


@pytest.mark.parametrize("noun", ["store", "config"])
@pytest.mark.parametrize("way", ["sqlite", "postgres"])
async def test_killed_members(way: str, noun: str, request: pytest.FixtureRequest) -> None:
    """Two members of the store, and two of config before them, each killed again and again;
    connections of the database end meanwhile, also around commits."""
    members = {"store": 2} if noun == "store" else {"store": 2, "config": 2}
    async with contextlib.AsyncExitStack() as stack:
        url, cut = await stack.enter_async_context(database(way, request))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ln-"))
        town = Town(Path(folder), members, {"store.url": url})
        await stack.enter_async_context(town.running())
        network = await stack.enter_async_context(caller(town.folder, members))
        await stack.enter_async_context(beside(kills(town, cut)))
        registers = (
            StoreRegisters(RemoteStore(network))
            if noun == "store"
            else ConfigRegisters(RemoteConfig(network))
        )
        clients = Clients([registers], count=16, keys=8, seed=SEED)
        await run(clients, LONG or 500, per_key=200, more=lambda: town.kills < KILLS)
    print(f"{town.kills} members killed")
