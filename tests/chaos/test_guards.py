"""What auth is told is in force at guards in other processes, whoever between them is killed."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from micro_ray.auth import Resource, Rule
from micro_ray.auth.cache import Status
from micro_ray.auth.keep import Keeper
from micro_ray.errors import Conflict, MicroError
from micro_ray.network.network import Network
from micro_ray.wire.auth import RemoteAuth
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.remote import Direct
from tests.fixtures.guards import SPACE, Watchers, watching
from tests.fixtures.members import TOKEN, Town, addresses, caller
from tests.fixtures.wait import PROMPT, eventually

ROUNDS = int(os.environ.get("MICRO_CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("MICRO_CHAOS_SEED", "0")) or time.time_ns() % 2**32
MEMBERS = {"store": 1, "auth": 1, "authcache": 1}
PROCESSES, EACH = 2, 5

pytestmark = pytest.mark.timeout(90 + 60 * ROUNDS)


class Office:
    """Changes what guards are told, by a token of the platform's parts."""

    def __init__(self, folder: Path, network: Network) -> None:
        self._folder = folder
        self._auth = RemoteAuth(network)
        self.made: set[str] = set()

    async def revoke(self) -> str:
        """Revoke a token; its id."""
        id = os.urandom(16).hex()
        await self._insist(lambda token: self._auth.revoke(token=id, by=token))
        return id

    async def rule(self, id: str) -> str:
        """Make a rule."""
        rule = Rule(id=id, scope="x", resource=Resource(name=id))

        async def make(token: str) -> None:
            try:
                await self._auth.create_rule(rule, namespace=SPACE, by=token)
            except Conflict:  # an attempt whose answer was lost
                assert any(
                    one.id == id for one in await self._auth.rules(namespace=SPACE, by=token)
                )

        await self._insist(make)
        self.made.add(id)
        return id

    async def _insist(self, call: Callable[[str], Awaitable[None]]) -> None:
        async def tried() -> bool:
            try:
                await call((self._folder / TOKEN).read_text())
            except MicroError as error:
                if error.code < 500:
                    raise
                return False
            return True

        await eventually(tried, within=30)


@asynccontextmanager
async def town() -> AsyncIterator[tuple[Town, Office, Watchers]]:
    with tempfile.TemporaryDirectory(prefix="gu-") as name:
        folder = Path(name)
        async with (
            Town(folder, MEMBERS, {"store.url": f"sqlite://{folder}/store"}).running() as running,
            caller(folder, {"auth": 1}) as network,
            watching(running, PROCESSES, EACH) as watchers,
        ):
            yield running, Office(folder, network), watchers


async def status(folder: Path) -> Status:
    direct = Direct(WireDialer(), addresses(folder, "authcache", 1), "authcache")
    try:
        return await direct.call("AuthCache.Status", {}, Status)
    finally:
        await direct.close()


async def followed(folder: Path) -> None:
    """Wait until all guards follow the cache, and it auth."""

    async def good() -> bool:
        now = await status(folder)
        return now.followers == PROCESSES * EACH and not now.stale

    await eventually(good, within=30)


async def test_who_is_killed_hinders_no_change() -> None:
    async with town() as (there, office, watchers):
        folder = there.folder
        await followed(folder)
        await watchers.all(await office.revoke())
        for number in range(ROUNDS):
            # A cache: guards go on with auth itself, and come back.
            await there.down("authcache-0")
            await watchers.all(await office.revoke())
            await watchers.all(await office.rule(f"without-a-cache-{number}"))
            await there.up("authcache-0")
            await followed(folder)
            # Auth: what holds goes on to hold, and what comes after it is heard of.
            await there.kill("auth-0")
            await watchers.all(await office.revoke(), within=30)
            # Both. The cache is back first, and has nothing but its file.
            await there.down("auth-0")
            await there.down("authcache-0")
            await there.up("authcache-0")
            now = await status(folder)
            assert now.stale
            assert office.made <= _kept(folder)
            await there.up("auth-0")
            await watchers.all(await office.rule(f"after-both-{number}"), within=30)
            await followed(folder)
        await all_agree(office, watchers)


def _kept(folder: Path) -> set[str]:
    """The rules of the namespace in the cache's file."""
    update = Keeper(folder / "auth-cache-0.snapshot").load()
    assert update is not None
    return {rule.id for space, rule in update.rules if space == SPACE}


async def all_agree(office: Office, watchers: Watchers) -> None:
    """All guards have the rules that were made."""
    mark = await office.rule(f"mark-{os.urandom(4).hex()}")
    for rules in await watchers.rules(mark):
        assert {id for id in rules if not id.startswith("default")} == office.made


async def test_guards_agree_while_everybody_is_killed() -> None:
    """Rules are made one after the other while any process is killed; in the end all guards have
    the same."""
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    async with town() as (there, office, watchers):
        for number in range(10 * ROUNDS):
            victim = chance.choice(["auth-0", "authcache-0", "store-0", ""])
            if victim:
                await there.kill(victim)
            await office.rule(f"r{number}")
            await office.revoke()
        await followed(there.folder)
        last = await office.revoke()
        await watchers.all(last, within=PROMPT)
        await all_agree(office, watchers)
