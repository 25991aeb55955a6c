"""What every store does: watching."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from micro_ray.errors import Conflict, Unavailable
from micro_ray.store import HISTORY, Action, Change, Delete, Put, Store
from tests.fixtures.stores import Clock
from tests.fixtures.wait import eventually


async def take(changes: AsyncIterator[Change], count: int, within: float = 10) -> list[Change]:
    async with asyncio.timeout(within):
        return [await anext(changes) for _ in range(count)]


async def test_changes_in_order(store: Store) -> None:
    async with contextlib.aclosing(store.watch(revision=0)) as changes:
        first = asyncio.create_task(take(changes, 1))
        one = await store.write("a", b"1")
        assert await first == [
            Change(
                revision=one.version, action=Action.PUT, database="micro", table="micro", key="a"
            )
        ]
        await store.transact([Put(key="b", value=b""), Delete(key="a"), Put(key="a", value=b"")])
        await store.delete("nothing")
        await store.write("c", b"")
        seen = await take(changes, 4)
    assert [(c.action, c.key) for c in seen] == [
        (Action.PUT, "b"), (Action.DELETE, "a"), (Action.PUT, "a"), (Action.PUT, "c"),
    ]  # fmt: skip
    assert [c.revision for c in seen] == sorted({c.revision for c in seen})
    assert seen[-1].revision == (await store.read("c")).version == await store.revision()
    assert seen[2].revision == (await store.read("a")).version


async def test_only_what_is_asked_for(store: Store) -> None:
    await store.write("a%1", b"")
    await store.write("ab1", b"")
    await store.write("a%2", b"", table="other")
    await store.write("a%3", b"", database="other")
    await store.write("a%4", b"", namespace="other")
    await store.write("a%5", b"")
    async with contextlib.aclosing(store.watch(revision=0, prefix="a%")) as changes:
        assert [c.key for c in await take(changes, 2)] == ["a%1", "a%5"]
    async with contextlib.aclosing(store.watch(revision=0, table="other")) as changes:
        assert [c.key for c in await take(changes, 1)] == ["a%2"]
    async with contextlib.aclosing(store.watch(revision=0, database="other")) as changes:
        assert [c.key for c in await take(changes, 1)] == ["a%3"]
    async with contextlib.aclosing(store.watch(revision=0, namespace="other")) as changes:
        assert [c.key for c in await take(changes, 1)] == ["a%4"]


async def test_a_watch_goes_on_where_it_ended(store: Store) -> None:
    """Without a gap or a repeat, while others write, from wherever it was cut."""
    total = 200

    async def write(part: int) -> None:
        for i in range(total // 4):
            await store.write(f"{part}-{i}", b"")

    writers = asyncio.gather(*(write(part) for part in range(4)))
    seen: list[Change] = []
    revision = 0
    while len(seen) < total:
        async with contextlib.aclosing(store.watch(revision=revision)) as changes:
            seen += await take(changes, min(7, total - len(seen)))
        revision = seen[-1].revision
    await writers
    assert [c.revision for c in seen] == list(range(1, total + 1))
    assert {c.key for c in seen} == set(await store.keys())


async def test_many_watch_alike(store: Store) -> None:
    async def follow() -> list[Change]:
        async with contextlib.aclosing(store.watch(revision=0)) as changes:
            return await take(changes, 50)

    followers = [asyncio.create_task(follow()) for _ in range(20)]
    for i in range(50):
        await store.write(str(i), b"")
    first, *others = await asyncio.gather(*followers)
    assert [c.key for c in first] == [str(i) for i in range(50)]
    assert all(other == first for other in others)


async def test_what_is_no_longer_kept(store: Store) -> None:
    for _ in range(HISTORY // 100 + 2):
        await store.transact([Put(key=str(i), value=b"") for i in range(100)])
    with pytest.raises(Conflict, match="no longer kept"):
        await take(store.watch(revision=50), 1)
    newest = await store.revision()
    async with contextlib.aclosing(store.watch(revision=newest - HISTORY // 2)) as changes:
        (change,) = await take(changes, 1)
    assert change.revision == newest - HISTORY // 2 + 1


async def test_what_was_never_given(store: Store) -> None:
    """A revision of another store, say: it will not come, and silence would look like peace."""
    with pytest.raises(Conflict, match="revision 1 is beyond the newest, 0"):
        await take(store.watch(revision=1), 1)
    newest = (await store.write("k", b"")).version
    for beyond in (newest + 1, 2**53):
        with pytest.raises(Conflict, match=f"revision {beyond} is beyond the newest, {newest}"):
            await take(store.watch(revision=beyond), 1)
    with pytest.raises(Conflict, match=f"revision {newest} is beyond the newest, 0"):
        await take(store.watch(revision=newest, namespace="other"), 1)
    # The newest itself is not beyond, and another's refusal disturbs nobody who watches.
    async with contextlib.aclosing(store.watch(revision=newest)) as changes:
        first = asyncio.create_task(take(changes, 1))
        await asyncio.sleep(0)
        with pytest.raises(Conflict, match="beyond the newest"):
            await take(store.watch(revision=newest + 5), 1)
        await store.write("next", b"")
        assert [c.key for c in await first] == ["next"]


async def test_watchers_see_what_expires(store: Store, clock: Clock) -> None:
    await store.write("k", b"", expiry=5)
    await store.write("later", b"", expiry=60)
    async with contextlib.aclosing(store.watch(revision=await store.revision())) as changes:
        first = asyncio.create_task(take(changes, 1, 20))
        clock.now += 6
        (change,) = await first
    assert (change.action, change.key) == (Action.DELETE, "k")
    assert await store.keys() == ["later"]


async def test_a_key_written_again_does_not_expire_by_its_old_time(
    store: Store, clock: Clock
) -> None:
    await store.write("k", b"", expiry=5)
    await store.write("k", b"", expiry=50)
    clock.now += 6
    await store.write("other", b"")
    async with contextlib.aclosing(store.watch(revision=2)) as changes:
        assert [c.key for c in await take(changes, 1)] == ["other"]
    assert (await store.read("k")).expiry == pytest.approx(44)


async def test_closing_ends_watchers(store: Store) -> None:
    watcher = asyncio.create_task(take(store.watch(revision=0), 1, 20))
    await store.write("other", b"", table="t")
    await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await asyncio.wait_for(watcher, 5)
    for attempt in (store.read("k"), store.write("k", b""), store.keys(), store.revision()):
        with pytest.raises(Unavailable, match="closed"):
            await attempt


async def test_leaving_leaves_nothing(store: Store) -> None:
    """Tasks that serve a watch end when nobody watches any more."""
    await store.write("k", b"")
    before = len(asyncio.all_tasks())
    watches = [store.watch(revision=0) for _ in range(5)]
    for watch in watches:
        await anext(watch)
    waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
    await store.write("other", b"", table="t")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    # One for the connection's own work may have come with the first stream.
    await eventually(lambda: len(asyncio.all_tasks()) <= before + 1)
