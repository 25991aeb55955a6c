"""How long a revocation and a rule take to be in force at 100 guards, over real frames: the store,
auth, its cache and the guards (four processes of 25) are processes of their own, and some are
killed (``kill -9``)."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bench.measure import latencies
from micro_ray.auth import Resource, Rule
from micro_ray.auth.cache import Status
from micro_ray.errors import MicroError
from micro_ray.wire.auth import RemoteAuth
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.remote import Direct
from tests.fixtures.guards import SPACE, Watchers, watching
from tests.fixtures.members import TOKEN, Town, addresses, caller
from tests.fixtures.wait import eventually

__all__ = ["run"]

PROCESSES, EACH = 4, 25
MEMBERS = {"store": 1, "auth": 1, "authcache": 1}
#: Rules that there are before.
RULES = 200


class _Bench:
    def __init__(self, town: Town, auth: RemoteAuth, watchers: Watchers) -> None:
        self.town = town
        self._auth = auth
        self._watchers = watchers
        self._direct = Direct(WireDialer(), addresses(town.folder, "authcache", 1), "authcache")

    async def revocation(self) -> list[float]:
        """Seconds from the call that is answered until it is in force, at each guard."""
        id = os.urandom(16).hex()
        return await self._change(id, lambda by: self._auth.revoke(token=id, by=by))

    async def rule(self) -> list[float]:
        id = f"r{os.urandom(8).hex()}"
        rule = Rule(id=id, scope="x", resource=Resource(name=id))
        return await self._change(
            id, lambda by: self._auth.create_rule(rule, namespace=SPACE, by=by)
        )

    async def _change(self, id: str, call: Callable[[str], Awaitable[None]]) -> list[float]:
        token = (self.town.folder / TOKEN).read_text()
        while True:
            begun = time.monotonic()
            try:
                await call(token)
                break
            except MicroError as error:
                if error.code < 500:
                    raise
                await asyncio.sleep(0.005)
        return [at - begun for at in await self._watchers.all(id, within=60)]

    async def settled(self) -> None:
        """All guards follow the cache, and it auth."""

        async def good() -> bool:
            status = await self._direct.call("AuthCache.Status", {}, Status)
            return status.followers == PROCESSES * EACH and not status.stale

        try:
            await eventually(good, within=60)
        finally:
            await self._direct.close()

    async def without_a_cache(self) -> list[float]:
        """It is killed up to 30 ms before a revocation."""
        await self.town.down("authcache-0")
        await asyncio.sleep(random.uniform(0, 0.03))
        took = await self.revocation()
        await self.town.up("authcache-0")
        await self.settled()
        return took

    async def auth_back(self) -> list[float]:
        """It is killed and started again, and then asked."""
        await self.town.kill("auth-0")
        return await self.revocation()

    async def both_back(self) -> list[float]:
        await self.town.down("auth-0")
        await self.town.down("authcache-0")
        await self.town.up("authcache-0")
        await self.town.up("auth-0")
        took = await self.revocation()
        await self.settled()
        return took


@asynccontextmanager
async def _running() -> AsyncIterator[_Bench]:
    with tempfile.TemporaryDirectory(prefix="mg-") as name:
        folder = Path(name)
        async with (
            Town(folder, MEMBERS, {"store.url": f"sqlite://{folder}/store"}).running() as town,
            caller(folder, {"auth": 1}) as network,
            watching(town, PROCESSES, EACH) as watchers,
        ):
            bench = _Bench(town, RemoteAuth(network), watchers)
            await bench.settled()
            yield bench


async def run(*, quick: bool) -> str:
    """Aim: p99 under 100 ms in each row."""
    changes, kills = (50, 3) if quick else (300, 20)
    rows: dict[str, list[float]] = {}
    async with _running() as bench:
        for _ in range(RULES):
            await bench.rule()
        for what, times, one in (
            ("a revocation", changes, bench.revocation),
            ("a rule", changes, bench.rule),
            ("a revocation, the cache just killed", kills, bench.without_a_cache),
            ("a revocation, auth killed and back", kills, bench.auth_back),
            ("a revocation, both killed and back", kills, bench.both_back),
        ):
            took = rows[f"{what} ({times} times)"] = []
            for _ in range(times):
                took += await one()
    load = os.getloadavg()[0]
    guards = f"A change of auth is in force at {PROCESSES * EACH} guards (load {load:.1f})"
    return latencies(guards, rows, digits=1)
