"""A cache of auth: what it tells its followers while its source comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from micro_ray.auth import Key, Kind, Resource, Revocation, Rule, Update
from micro_ray.auth.cache import Cache
from micro_ray.auth.fanout import KEPT
from micro_ray.auth.guard import Guard
from micro_ray.auth.known import Known, join, split
from micro_ray.errors import Forbidden, Unauthorized, Unavailable
from micro_ray.store.memory import MemoryStore
from tests.fixtures.auths import BOSS, ROOT, identity, over
from tests.fixtures.stores import Clock
from tests.fixtures.wait import PROMPT, eventually

KEY = Key(id="k", x="11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", state="active")
FULL = Update(
    revision=10, full=True, keys=(KEY,), rules=(("acme", Rule(id="a")), ("micro", Rule(id="m")))
)


class Source:
    """Says what it is told to, to whoever follows; cut, the stream breaks, and again until told."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Update | None] = asyncio.Queue()
        self.asked = 0

    def say(self, *updates: Update) -> None:
        for update in updates:
            self.queue.put_nowait(update)

    def cut(self) -> None:
        self.queue.put_nowait(None)

    async def __call__(self) -> AsyncIterator[Update]:
        self.asked += 1
        while (update := await self.queue.get()) is not None:
            yield update
        raise Unavailable("auth", "cut")


class Follower:
    """Collects what it is told."""

    def __init__(self, cache: Cache, namespace: str | None = None, mark: str = "") -> None:
        self.told: list[Update] = []
        self.guard = Guard()
        self._task = asyncio.create_task(self._run(cache, namespace, mark))

    async def _run(self, cache: Cache, namespace: str | None, mark: str) -> None:
        async with aclosing(cache.follow(namespace, mark=mark, by=ROOT)) as updates:  # type: ignore[type-var]
            async for update in updates:
                self.told.append(update)
                self.guard.apply(update)

    async def gets(self, count: int) -> list[Update]:
        await eventually(lambda: len(self.told) >= count, within=PROMPT)
        assert len(self.told) == count
        return self.told

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ac-") as name:
        yield Path(name)


async def test_everything_then_what_changes() -> None:
    source = Source()
    source.say(FULL)
    async with Cache(source) as cache, Follower(cache) as one, Follower(cache) as two:
        for follower in (one, two):
            assert await follower.gets(1) == [FULL]
        change = Update(revision=11, rules=(("acme", Rule(id="b")),), gone=(("acme", "a"),))
        source.say(change)
        for follower in (one, two):
            assert (await follower.gets(2))[1] == change
        async with Follower(cache) as late:
            (first,) = await late.gets(1)
            assert {rule.id for _, rule in first.rules} == {"b", "m"}
            status = await cache.status()
            assert (status.revision, status.stale, status.followers) == (11, False, 3)
            assert (status.keys, status.rules, status.revoked) == (1, 2, 0)
        assert (await cache.status()).followers == 2
        assert source.asked == 1


async def test_all_holds_while_the_source_is_away() -> None:
    source = Source()
    source.say(FULL)
    async with Cache(source) as cache, Follower(cache) as follower:
        await follower.gets(1)
        source.cut()
        assert (await follower.gets(2))[1] == Update(revision=10, stale=True)
        assert (await cache.status()).stale
        async with Follower(cache) as late:
            (first,) = await late.gets(1)
            assert (first.full, first.stale, first.keys) == (True, True, (KEY,))
            assert late.guard.ready
            assert late.guard.stale
            new = ("acme", Rule(id="b"))
            source.say(Update(revision=12, full=True, keys=(KEY,), rules=(FULL.rules[0], new)))
            again = Update(revision=12, rules=(new,), gone=(("micro", "m"),), resumed=True)
            assert (await follower.gets(3))[2] == again, "what is new of it"
            assert (await late.gets(2))[1] == again
            assert not late.guard.stale
        assert not (await cache.status()).stale
        assert source.asked >= 2


def marked(revision: int, mark: str, *rules: str, **more: Any) -> Update:
    return Update(
        revision=revision, mark=mark, rules=tuple(("acme", Rule(id=id)) for id in rules), **more
    )


async def test_who_says_what_he_knew_is_told_what_he_missed() -> None:
    source = Source()
    source.say(marked(10, "ten", "a", full=True, keys=(KEY,)))
    async with Cache(source) as cache, Follower(cache) as follower:
        await follower.gets(1)
        changes = [marked(11, "eleven", "b"), marked(12, "twelve", "c")]
        source.say(*changes)
        await follower.gets(3)
        assert follower.guard.mark == "twelve"
        done = Update(revision=12, mark="twelve", resumed=True)
        for mark, missed in (("ten", changes), ("eleven", changes[1:]), ("twelve", [])):
            async with Follower(cache, mark=mark) as late:
                assert await late.gets(len(missed) + 1) == [*missed, done]
        for mark in ("nine", ""):
            async with Follower(cache, mark=mark) as late:
                assert (await late.gets(1))[0].full
        source.cut()
        await follower.gets(4)
        async with Follower(cache, mark="eleven") as late:
            told = await late.gets(3)
            assert told[0] == changes[1]
            assert [update.stale for update in told] == [False, True, True]
            assert late.guard.stale
            # Its source goes on where it was, as seen from here.
            source.say(marked(13, "13", "d", resumed=True))
            await late.gets(4)
            assert not late.guard.stale
        assert not (await cache.status()).stale


async def test_what_fell_out_of_memory_is_told_whole() -> None:
    source = Source()
    source.say(marked(1, "m1", full=True, keys=(KEY,)))
    async with Cache(source) as cache:
        source.say(*(marked(n, f"m{n}", f"r{n}") for n in range(2, KEPT + 3)))
        await eventually(source.queue.empty, within=PROMPT)
        for mark, whole in (("m1", True), ("m3", False), (f"m{KEPT + 2}", False)):
            first = await anext(cache.follow(mark=mark, by=ROOT))
            assert first.full == whole, mark


async def test_marks_are_of_what_there_is(folder: Path) -> None:
    """Two instances on one store, one of which has come later, say the same word for the same."""
    clock = Clock()
    async with MemoryStore() as store, over(store, folder, clock) as one:
        updates = one.follow(by=ROOT)
        marks = [(await anext(updates)).mark]

        async def next_mark() -> str:
            marks.append((await asyncio.wait_for(anext(updates), PROMPT)).mark)
            async with over(store, folder, clock) as other:
                assert (await anext(other.follow(by=ROOT))).mark == marks[-1]
                (resumed,) = [await anext(other.follow(mark=marks[-1], by=ROOT))]
                assert resumed.resumed
            return marks[-1]

        await one.create_rule(Rule(id="a"), by=ROOT)
        await next_mark()
        await one.revoke(token="0" * 32, by=ROOT)
        await next_mark()
        await one.rotate(by=ROOT)
        await next_mark()
        await one.create_rule(Rule(id="b"), namespace="acme", by=ROOT)
        before = await next_mark()
        await one.create_rule(Rule(id="c"), namespace="acme", by=ROOT)
        await next_mark()
        assert len(set(marks)) == len(marks)
        assert {len(mark) for mark in marks} == {32}
        await one.delete_rule("c", namespace="acme", by=ROOT)
        assert await next_mark() == before


async def test_who_finds_it_empty_is_told_so() -> None:
    source = Source()
    source.cut()
    async with Cache(source) as cache, Follower(cache) as follower:
        assert await follower.gets(1) == [Update(revision=-1, stale=True)]
        with pytest.raises(Unavailable):
            await anext(cache.follow(by="a.b.c"))
        (finding,) = await cache.examine()
        assert not finding.good
        source.say(FULL)
        assert (await follower.gets(2))[1] == FULL
        (finding,) = await cache.examine()
        assert finding.good


async def test_a_revocation_is_kept_until_its_time_is_over() -> None:
    clock, source = Clock(), Source()
    lives = Revocation(account="acme/jane", before=clock.now, until=clock.now + 100)
    ends = Revocation(token="t", until=clock.now + 10)
    source.say(FULL, Update(revision=11, revoked=(lives, ends)))
    async with Cache(source, clock=clock) as cache:
        await eventually(lambda: source.queue.empty(), within=PROMPT)
        clock.now += 50
        source.cut()
        source.say(Update(revision=3, full=True, keys=(KEY,)))
        await eventually(lambda: source.asked == 2 and source.queue.empty(), within=PROMPT)
        async with Follower(cache) as follower:
            (first,) = await follower.gets(1)
            assert first.revoked == (lives,)
            assert first.rules == ()
            assert first.revision == 3
        clock.now += 51
        source.say(Update(revision=4))
        await eventually(source.queue.empty, within=PROMPT)
        async with Follower(cache) as follower:
            (first,) = await follower.gets(1)
            assert first.revoked == ()


async def test_revocations_whose_time_is_over_do_not_pile_up() -> None:
    clock = Clock()
    known = Known(clock)
    for number in range(10_000):
        clock.now += 1
        revoked = Revocation(token=str(number), until=clock.now + 50)
        known.apply(Update(revision=number, revoked=(revoked,)))
        assert len(known.revoked) <= 202
    older = Revocation(account="a/b", before=5.0, until=clock.now + 5)
    newer = Revocation(account="a/b", before=7.0, until=clock.now + 2)
    known.apply(Update(revision=1, revoked=(newer, older)))
    assert known.revoked["", "a/b"] == Revocation(account="a/b", before=7.0, until=older.until)


async def test_a_follower_that_is_too_far_behind_gets_everything() -> None:
    source = Source()
    source.say(FULL)
    async with Cache(source) as cache:
        updates = cache.follow(by=ROOT)
        assert await anext(updates) == FULL
        changes = [
            Update(revision=11 + n, rules=(("acme", Rule(id=f"r{n}")),)) for n in range(KEPT + 1)
        ]
        source.say(*changes)
        await eventually(source.queue.empty, within=PROMPT)
        first = await anext(updates)
        assert first.full
        assert first.revision == changes[-1].revision
        assert len(first.rules) == KEPT + 3
        await updates.aclose()  # type: ignore[attr-defined]


async def test_a_namespace_gets_its_own() -> None:
    source = Source()
    source.say(FULL)
    process = identity("shop", kind=Kind.SERVICE, namespace="acme", scopes=("service",))
    async with Cache(source) as cache, Follower(cache, "acme") as follower:
        (first,) = await follower.gets(1)
        assert [(space, rule.id) for space, rule in first.rules] == [("acme", "a")]
        revoked = Revocation(account="other/jane", before=1.0, until=2.0**40)
        source.say(
            Update(revision=11, rules=(("other", Rule(id="x")),)),
            Update(revision=12, gone=(("micro", "m"),), revoked=(revoked,)),
            Update(revision=13, gone=(("acme", "a"),)),
        )
        told = await follower.gets(4)
        assert [update.rules for update in told[1:]] == [(), (), ()]
        assert [update.gone for update in told[1:]] == [(), (), (("acme", "a"),)]
        assert told[2].revoked == (revoked,)
        assert follower.guard.revision == 13
        assert await anext(cache.follow(by=process)) == await anext(cache.follow("acme", by=ROOT))
        for by, asked in ((process, "other"), (process, "micro"), (BOSS, "other"), (BOSS, "micro")):
            with pytest.raises(Forbidden):
                await anext(cache.follow(asked, by=by))
        with pytest.raises(Unauthorized):
            await anext(cache.follow(by=None))


async def test_tokens_are_judged_by_what_is_told(folder: Path) -> None:
    clock = Clock()
    async with MemoryStore() as store, over(store, folder, clock) as auth:
        cache = Cache(lambda: auth.follow(by=ROOT), guard=Guard(clock=clock), clock=clock)
        async with cache:
            tokens = await auth.issue("door", by=ROOT)
            await eventually(lambda: cache._fanout.ready, within=PROMPT)
            assert (await anext(cache.follow(by=tokens.access))).full
            await auth.revoke(token=tokens.access, by=ROOT)

            async def refused() -> bool:
                with contextlib.suppress(Unauthorized):
                    await anext(cache.follow(by=tokens.access))
                    return False
                return True

            await eventually(refused, within=PROMPT)
            with pytest.raises(Unauthorized):
                await anext(cache.follow(by="no.to.ken"))


async def test_the_end_ends_followers() -> None:
    source = Source()
    source.say(FULL)
    async with Cache(source) as cache:
        updates = cache.follow(by=ROOT)
        assert await anext(updates) == FULL
        await cache.close()
        with pytest.raises(Unavailable, match="closed"):
            await anext(updates)
        await cache.close()


# -- what is kept ----------------------------------------------------------------------------------


async def test_the_next_life_serves_what_the_last_one_knew(folder: Path) -> None:
    path, source = folder / "auth-cache-0.snapshot", Source()
    source.say(FULL, Update(revision=11, rules=(("acme", Rule(id="b")),)))
    async with Cache(source, keep=path):
        await eventually(source.queue.empty, within=PROMPT)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(folder) == [path.name]
    source.cut()
    async with Cache(source, keep=path) as cache, Follower(cache) as follower:
        (first,) = await follower.gets(1)
        assert (first.full, first.stale, first.revision) == (True, True, 11)
        assert {rule.id for _, rule in first.rules} == {"a", "b", "m"}
        assert follower.guard.ready
        assert follower.guard.stale
        source.say(Update(revision=12, full=True, keys=(KEY,)))
        await eventually(lambda: not follower.guard.stale, within=PROMPT)


@pytest.mark.parametrize("damage", ["noise", "cut", "version", "part", "open", "folder"])
async def test_a_file_that_is_of_no_use_is_none(folder: Path, damage: str) -> None:
    path, source = folder / "auth-cache-0.snapshot", Source()
    source.say(FULL)
    async with Cache(source, keep=path):
        await eventually(source.queue.empty, within=PROMPT)
    body = path.read_bytes()
    if damage == "noise":
        path.write_bytes(os.urandom(1000))
    elif damage == "cut":
        path.write_bytes(body[:-5])
    elif damage == "version":
        path.write_bytes(msgspec.msgpack.encode({**msgspec.msgpack.decode(body), "version": 2}))
    elif damage == "part":
        change = Update(revision=12, rules=(("acme", Rule(id="x")),))
        path.write_bytes(msgspec.msgpack.encode({"version": 1, "update": change}))
    elif damage == "open":
        path.chmod(0o644)
    else:
        path.unlink()
        path.mkdir()
    async with Cache(source, keep=path) as cache, Follower(cache) as follower:
        source.cut()
        assert await follower.gets(1) == [Update(revision=-1, stale=True)]
        source.say(FULL)
        assert (await follower.gets(2))[1] == FULL


async def test_what_an_old_snapshot_says_does_not_undo() -> None:
    """A cache that restarts may know less than a guard does: of that only revocations are taken."""
    guard = Guard()
    hello = Resource(name="greeter", endpoint="Greeter.Hello")
    jane = identity("jane", namespace="acme")
    opened = Rule(id="a", scope="*", resource=hello, priority=2)
    shut = Rule(id="z", scope="*", resource=hello, access="denied", priority=9)  # type: ignore[arg-type]
    guard.apply(Update(revision=10, full=True, keys=(KEY,), rules=(("acme", opened),)))
    guard.apply(Update(revision=11, rules=(("acme", shut),)))
    revoked = Revocation(token="t", until=2.0**40)
    old = Update(revision=10, full=True, stale=True, rules=(("acme", opened),), revoked=(revoked,))
    guard.apply(old)
    assert not guard.decide(jane, hello, "acme").allowed
    assert guard._tokens == {"t": 2.0**40}
    assert (guard.revision, guard.stale) == (11, True)
    guard.apply(Update(revision=12, rules=(("acme", opened),), mark="m", resumed=True))
    assert (guard.revision, guard.stale, guard.mark) == (11, True, ""), "since what it did not take"
    guard.apply(Update(revision=12, full=True, keys=(KEY,), rules=(("acme", opened),)))
    assert guard.decide(jane, hello, "acme").allowed
    assert guard._tokens == {"t": 2.0**40}
    assert not guard.stale


def test_a_large_update_goes_in_parts() -> None:
    rules = tuple(
        (f"n{n % 7}", Rule(id=f"r{n}", resource=Resource(endpoint="x" * 253))) for n in range(5000)
    )
    update = Update(
        revision=7,
        full=True,
        keys=(KEY,),
        rules=rules,
        gone=tuple(("n1", f"g{n}") for n in range(500)),
        revoked=tuple(Revocation(token=str(n), until=1.0) for n in range(500)),
    )
    parts = list(split(update))
    assert len(parts) > 3
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert max(len(msgspec.msgpack.encode(part)) for part in parts) < 2**20
    assert join(parts) == update
    assert list(split(FULL)) == [FULL]
