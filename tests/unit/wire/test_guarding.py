"""Informers: whom a guard is kept up to date by, while caches and auth come and go."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from micro_ray.auth import Key, Revocation, Rule, Update
from micro_ray.auth.cache import Cache
from micro_ray.auth.fanout import Fanout
from micro_ray.auth.guard import Guard
from micro_ray.auth.stored import StoredAuth
from micro_ray.errors import Unavailable
from micro_ray.store.memory import MemoryStore
from micro_ray.wire import auth as auth_face
from micro_ray.wire import authcache as cache_face
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.guarding import Informer, members
from tests.fixtures.auths import ROOT, over
from tests.fixtures.lines import Place
from tests.fixtures.stores import Clock
from tests.fixtures.wait import PROMPT, eventually

KEY = Key(id="k", x="11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", state="active")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gd-") as name:
        yield Path(name)


class Stage:
    """Auth, a cache of it that outlives its socket, and who has a token."""

    def __init__(self, auth: StoredAuth, cache: Cache, folder: Path, token: str) -> None:
        self.auth = auth
        self.cache = cache
        self.token = token
        self.auth_at = Place(folder / "auth-0.sock", lambda: auth_face.endpoints(auth))
        self.cache_at = Place(folder / "authcache-0.sock", lambda: cache_face.endpoints(cache))
        self.guard = Guard(clock=auth._clock)

    def credential(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def informer(self, namespace: str | None = None) -> Informer:
        where = [self.cache_at.address, self.auth_at.address]
        return Informer(
            WireDialer(), where, self.guard, credential=self.credential, namespace=namespace
        )

    async def followers(self, count: int) -> None:
        """Wait until so many follow the cache."""

        async def good() -> bool:
            return (await self.cache.status()).followers == count

        await eventually(good, within=PROMPT)

    async def hears(self, id: str) -> None:
        """A rule that is made is in force."""
        await self.auth.create_rule(Rule(id=id), namespace="acme", by=ROOT)
        await eventually(lambda: id in rules(self.guard), within=PROMPT)


def rules(guard: Guard, namespace: str = "acme") -> list[str]:
    found = guard._rules.get(namespace)
    return [] if found is None else [r.id for r in found.ordered if not r.id.startswith("default")]


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    clock = Clock()
    async with MemoryStore() as store, over(store, folder, clock) as auth:
        token = (await auth.issue("part", scopes=("platform",), by=ROOT)).access
        dialer, where = WireDialer(), [f"unix:{folder}/auth-0.sock"]
        source = members(dialer, where, lambda: {"authorization": f"Bearer {token}"})
        async with Cache(source, guard=Guard(clock=clock), clock=clock) as cache:
            made = Stage(auth, cache, folder, token)
            async with made.auth_at:
                yield made


async def test_caches_come_first(folder: Path) -> None:
    async with stage(folder) as here, here.cache_at, here.informer() as informer:
        await asyncio.wait_for(informer.ready.wait(), PROMPT)
        await here.followers(1)
        assert not here.guard.stale
        await here.hears("a")
        assert (await here.cache.status()).followers == 1


async def test_without_a_cache_it_goes_on_with_auth_and_returns(folder: Path) -> None:
    async with stage(folder) as here, here.cache_at, here.informer() as informer:
        await asyncio.wait_for(informer.ready.wait(), PROMPT)
        await here.followers(1)
        for number in range(2):
            await here.cache_at.close()
            await here.hears(f"without-{number}")
            assert not here.guard.stale
            await here.cache_at.open()
            await here.followers(1)
            await here.hears(f"with-{number}")
        assert rules(here.guard) == ["with-0", "with-1", "without-0", "without-1"]
        assert not here.guard.stale


async def test_with_nobody_what_is_known_holds(folder: Path) -> None:
    async with stage(folder) as here, here.cache_at, here.informer() as informer:
        await asyncio.wait_for(informer.ready.wait(), PROMPT)
        await here.hears("a")
        await here.cache_at.close()
        await here.auth_at.close()
        await eventually(lambda: here.guard.stale, within=PROMPT)
        assert rules(here.guard) == ["a"]
        assert here.guard.verify(here.token).id == "part"
        await here.auth.create_rule(Rule(id="b"), namespace="acme", by=ROOT)
        await here.auth_at.open()
        await eventually(lambda: rules(here.guard) == ["a", "b"], within=PROMPT)
        await eventually(lambda: not here.guard.stale, within=PROMPT)


async def test_auth_itself_does_where_there_is_no_cache(folder: Path) -> None:
    async with stage(folder) as here, here.informer() as informer:
        await asyncio.wait_for(informer.ready.wait(), PROMPT)
        await here.hears("a")


async def test_a_namespace_hears_what_is_its_own(folder: Path) -> None:
    async with stage(folder) as here, here.cache_at, here.informer("acme") as informer:
        await asyncio.wait_for(informer.ready.wait(), PROMPT)
        await here.auth.create_rule(Rule(id="x"), namespace="other", by=ROOT)
        await here.hears("a")
        assert rules(here.guard, "other") == []
        await here.cache_at.close()
        await here.hears("b")
        assert rules(here.guard, "other") == []


async def test_who_may_not_follow_never_raises(folder: Path) -> None:
    async with stage(folder) as here, here.cache_at:
        good, here.token = here.token, "no.to.ken"
        async with here.informer() as informer:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(informer.ready.wait(), 0.2)
            assert not here.guard.ready
            here.token = good
            await asyncio.wait_for(informer.ready.wait(), PROMPT)

    def broken() -> dict[str, str]:
        raise RuntimeError("no credential")

    async with Informer(WireDialer(), ["unix:/tmp/none"], Guard(), credential=broken) as informer:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(informer.ready.wait(), 0.1)


# -- sources that know less ------------------------------------------------------------------------


class Teller:
    """A cache of our own making: it says what it is told to, whoever asks."""

    def __init__(self, path: Path) -> None:
        self.fanout = Fanout()
        self.asked = 0
        self.place = Place(path, self._face)

    def _face(self) -> Endpoints:
        async def follow(namespace: str | None = None, mark: str = "") -> AsyncIterator[Update]:
            self.asked += 1
            async with aclosing(self.fanout.follow(namespace, mark)) as updates:  # type: ignore[type-var]
                async for update in updates:
                    yield update

        table = Endpoints("authcache")
        table.add("AuthCache.Follow", follow)
        return table


def full(revision: int, *rules: str, stale: bool = False) -> Update:
    told = tuple(("acme", Rule(id=id)) for id in rules)
    return Update(revision=revision, full=True, keys=(KEY,), rules=told, stale=stale)


async def test_one_that_is_behind_is_believed_in_the_end(folder: Path) -> None:
    """It may catch up; else the source was set back."""
    teller, guard = Teller(folder / "authcache-0.sock"), Guard()
    teller.fanout.take(full(5, "new"))
    async with teller.place, Informer(WireDialer(), [teller.place.address], guard) as informer:
        await asyncio.wait_for(informer.ready.wait(), PROMPT)
        await teller.place.close()
        teller.fanout = Fanout()
        teller.fanout.take(full(4, "old"))
        await teller.place.open()
        await eventually(lambda: teller.asked > 3, within=PROMPT)
        assert rules(guard) == ["new"]
        await eventually(lambda: rules(guard) == ["old"], within=PROMPT)
        assert guard.revision == 4
        assert not guard.stale


async def test_a_stale_one_is_left_for_another(folder: Path) -> None:
    stale, good, guard = Teller(folder / "authcache-0.sock"), Teller(folder / "a.sock"), Guard()
    stale.fanout.take(full(5, "old", stale=True))
    where = [stale.place.address, good.place.address]
    async with stale.place, good.place, Informer(WireDialer(), where, guard) as informer:
        await asyncio.wait_for(informer.ready.wait(), PROMPT)
        assert guard.stale
        assert rules(guard) == ["old"]
        good.fanout.take(full(6, "new"))
        await eventually(lambda: not guard.stale, within=PROMPT)
        assert rules(guard) == ["new"]
        revoked = Revocation(token="t", until=2.0**40)
        good.fanout.take(Update(revision=7, revoked=(revoked,)))
        await eventually(lambda: "t" in guard._tokens, within=PROMPT)
        # The other is back: it is a cache, and has caught up.
        stale.fanout.take(full(7, "new"))
        await eventually(lambda: good.fanout.followers == 0, within=PROMPT)
        assert "t" in guard._tokens
        assert stale.fanout.followers == 1


async def test_what_was_deleted_while_an_old_one_was_followed_is_gone(folder: Path) -> None:
    """What has changed since what it knew, and the guard did not take, is not all."""
    teller, guard = Teller(folder / "authcache-0.sock"), Guard()
    teller.fanout.take(full(5, "a", "x"))
    async with teller.place, Informer(WireDialer(), [teller.place.address], guard) as informer:
        await asyncio.wait_for(informer.ready.wait(), PROMPT)
        await teller.place.close()
        teller.fanout = Fanout()
        teller.fanout.take(full(4, "a", stale=True))
        await teller.place.open()
        await eventually(lambda: guard.aside, within=PROMPT)
        assert rules(guard) == ["a", "x"]
        teller.fanout.take(full(6, "a", "b"))
        await eventually(lambda: not guard.stale, within=PROMPT)
        assert rules(guard) == ["a", "b"]


async def test_a_large_snapshot_comes_whole(folder: Path) -> None:
    async with stage(folder) as here, here.cache_at:
        many = tuple(("acme", Rule(id=f"r{n:04}", scope="s" * 100)) for n in range(9000))
        await eventually(lambda: here.cache._fanout.ready, within=PROMPT)
        here.cache._take(Update(revision=10**6, rules=many))
        async with here.informer() as informer:
            await asyncio.wait_for(informer.ready.wait(), PROMPT)
            assert len(rules(here.guard)) == 9000


async def test_members_take_turns(folder: Path) -> None:
    tellers = [Teller(folder / f"auth-{n}.sock") for n in range(2)]
    for teller in tellers:
        teller.fanout.take(full(1))
    where = [teller.place.address for teller in tellers]
    async with tellers[0].place, tellers[1].place:
        follow = members(WireDialer(), [*where, "unix:/tmp/none"])
        for _ in range(3):
            updates = follow()
            assert (await anext(updates)).full
            await updates.aclose()  # type: ignore[attr-defined]
        assert [teller.asked for teller in tellers] == [2, 1]
    with pytest.raises(Unavailable):
        await anext(members(WireDialer(), ["unix:/tmp/none"])())
