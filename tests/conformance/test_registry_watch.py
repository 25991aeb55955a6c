"""What every registry does: watching, and closing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from micro_ray.errors import Conflict, Unavailable
from micro_ray.registry import Action, Change, Registry
from tests.fixtures.registries import Clock, Way, instance
from tests.fixtures.wait import eventually


async def take(changes: AsyncIterator[Change], count: int, within: float = 10) -> list[Change]:
    async with asyncio.timeout(within):
        return [await anext(changes) for _ in range(count)]


def grow(revisions: list[int]) -> bool:
    """Whether each is greater than the one before."""
    return revisions == sorted(set(revisions))


async def test_changes_in_order(registry: Registry) -> None:
    start = await registry.snapshot()
    async with contextlib.aclosing(
        registry.watch(epoch=start.epoch, revision=start.revision)
    ) as changes:
        first = asyncio.create_task(take(changes, 1))
        await registry.register(instance(node="a"))
        ((one,),) = (await first,)
        assert (one.action, one.instance) == (Action.PUT, instance(node="a"))
        await registry.register(instance(node="a"))  # no change
        await registry.register(instance(node="b"))
        await registry.deregister("micro", "nobody")  # none
        await registry.register(instance(node="a", weight=1))
        await registry.deregister("micro", "a")
        seen = await take(changes, 3)
    assert [(c.action, c.instance) for c in seen] == [
        (Action.PUT, instance(node="b")),
        (Action.PUT, instance(node="a", weight=1)),
        (Action.DELETE, instance(node="a", weight=1)),
    ]
    assert grow([start.revision, one.revision, *(c.revision for c in seen)])
    assert (await registry.snapshot()).revision == seen[-1].revision


async def test_a_watch_goes_on_where_it_ended(registry: Registry) -> None:
    """Without a gap or a repeat, while others register, from wherever it was cut."""
    start, total = await registry.snapshot(), 200

    async def write(part: int) -> None:
        for i in range(total // 4):
            await registry.register(instance(node=f"{part}-{i}"))

    writers = asyncio.gather(*(write(part) for part in range(4)))
    seen: list[Change] = []
    revision = start.revision
    while len(seen) < total:
        async with contextlib.aclosing(
            registry.watch(epoch=start.epoch, revision=revision)
        ) as changes:
            seen += await take(changes, min(7, total - len(seen)))
        revision = seen[-1].revision
    await writers
    assert grow([start.revision, *(c.revision for c in seen)])
    assert [c.instance for c in seen] == [*(await registry.snapshot()).instances]


async def test_many_watch_alike(registry: Registry) -> None:
    start = await registry.snapshot()

    async def follow() -> list[Change]:
        async with contextlib.aclosing(
            registry.watch(epoch=start.epoch, revision=start.revision)
        ) as changes:
            return await take(changes, 50)

    followers = [asyncio.create_task(follow()) for _ in range(20)]
    for i in range(50):
        await registry.register(instance(node=str(i)))
    first, *others = await asyncio.gather(*followers)
    assert [c.instance.node.id for c in first] == [str(i) for i in range(50)]
    assert all(other == first for other in others)


async def test_watchers_see_what_ends(timed: Registry, ticks: Clock) -> None:
    await timed.register(instance(node="short"), ttl=5)
    await timed.register(instance(node="long"), ttl=60)
    at = await timed.snapshot()
    async with contextlib.aclosing(timed.watch(epoch=at.epoch, revision=at.revision)) as changes:
        first = asyncio.create_task(take(changes, 1))
        ticks.now += 5.1
        (change,) = await first
    assert (change.action, change.instance) == (Action.DELETE, instance(node="short"))


async def test_what_is_no_longer_kept(way: Way) -> None:
    registry = way.registry
    await registry.register(instance())
    old = await registry.snapshot()
    await way.forget()
    new = await registry.snapshot()
    assert new.epoch == old.epoch
    with pytest.raises(Conflict, match=f"{old.revision} is no longer kept"):
        await take(registry.watch(epoch=old.epoch, revision=old.revision), 1)
    with pytest.raises(Conflict, match="no longer kept"):
        await take(registry.watch(epoch=old.epoch, revision=-1), 1)
    for node in "abc":
        await registry.register(instance(node=node))
    async with contextlib.aclosing(
        registry.watch(epoch=new.epoch, revision=new.revision)
    ) as changes:
        seen = await take(changes, 3)
    assert [c.instance.node.id for c in seen] == ["a", "b", "c"]


async def test_a_revision_that_is_to_come(registry: Registry) -> None:
    at = await registry.snapshot()
    with pytest.raises(Conflict, match=f"{at.revision + 1} is to come"):
        await take(registry.watch(epoch=at.epoch, revision=at.revision + 1), 1)


@pytest.mark.parametrize("epoch", ["", "another"])
async def test_another_epoch(registry: Registry, epoch: str) -> None:
    at = await registry.snapshot()
    with pytest.raises(Conflict, match="another life"):
        await take(registry.watch(epoch=epoch, revision=at.revision), 1)


async def test_a_watcher_that_falls_behind(way: Way) -> None:
    """It gets what it had been given, in order, and then the Conflict: never a gap."""
    registry = way.registry
    start = await registry.snapshot()
    async with contextlib.aclosing(
        registry.watch(epoch=start.epoch, revision=start.revision)
    ) as changes:
        await registry.register(instance())
        seen = await take(changes, 1)
        for _ in range(8):  # more than the line between holds
            await way.forget()

        async def read_on() -> None:
            async for change in changes:
                seen.append(change)

        with pytest.raises(Conflict, match="no longer kept"):
            await asyncio.wait_for(read_on(), 10)
    assert grow([start.revision, *(c.revision for c in seen)])
    assert seen[-1].revision < (await registry.snapshot()).revision


async def test_closing_ends_watchers(registry: Registry) -> None:
    start = await registry.snapshot()

    seen: list[Change] = []

    async def follow() -> None:
        async for change in registry.watch(epoch=start.epoch, revision=start.revision):
            seen.append(change)

    watcher = asyncio.create_task(follow())
    await registry.register(instance())
    await eventually(lambda: seen)
    await registry.close()
    await asyncio.wait_for(watcher, 5)
    assert [c.instance for c in seen] == [instance()]
    for attempt in (
        registry.register(instance()),
        registry.renew("micro", ["n1"]),
        registry.deregister("micro", "n1"),
        registry.get("micro", "greeter"),
        registry.list("micro"),
        registry.snapshot(),
        take(registry.watch(epoch=start.epoch, revision=0), 1),
    ):
        with pytest.raises(Unavailable, match="closed"):
            await attempt
    await registry.close()


async def test_leaving_leaves_nothing(registry: Registry) -> None:
    """Tasks that serve a watch end when nobody watches any more."""
    start = await registry.snapshot()
    await registry.register(instance())
    await registry.snapshot()
    before = len(asyncio.all_tasks())
    watches = [registry.watch(epoch=start.epoch, revision=start.revision) for _ in range(5)]
    for watch in watches:
        await anext(watch)
    waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
    await registry.snapshot()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await eventually(lambda: len(asyncio.all_tasks()) <= before)
