"""What every config does: watching."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import cast

import pytest

from micro_ray.config import Change, Config, Kind, Version
from micro_ray.errors import Conflict, Unavailable
from tests.fixtures.wait import eventually

Versions = AsyncGenerator[Version, None]


def watch(config: Config, path: str = "", version: int | None = None) -> Versions:
    return cast("Versions", config.watch(path, version=version))


async def take(versions: Versions, count: int, within: float = 10) -> list[Version]:
    async with asyncio.timeout(within):
        return [await anext(versions) for _ in range(count)]


async def test_versions_in_order(config: Config) -> None:
    await config.set("a", 1)
    async with contextlib.aclosing(watch(config, version=0)) as versions:
        (first,) = await take(versions, 1)
        assert first.changes == (Change(path="a", kind=Kind.ADDED, new=1),)
        waiting = asyncio.create_task(take(versions, 1))
        await config.set("a", 2)
        (second,) = await waiting
        assert second.version == 2
        for i in range(20):
            await config.set("a", -i)
        assert [v.version for v in await take(versions, 20)] == [*range(3, 23)]


async def test_who_did_it_is_told(config: Config) -> None:
    await config.set("a", 1, by="ann")
    async with contextlib.aclosing(watch(config, version=0)) as versions:
        (version,) = await take(versions, 1)
        assert version.author == "ann"


async def test_from_now_on(config: Config) -> None:
    await config.set("a", 1)
    async with contextlib.aclosing(watch(config)) as versions:
        waiting = asyncio.create_task(take(versions, 1))

        async def written() -> bool:
            version = await config.set("a", time.monotonic())
            await asyncio.wait([waiting], timeout=0.05)
            return waiting.done() and waiting.result()[0].version <= version

        assert await eventually(written)
        assert waiting.result()[0].version > 1


async def test_only_what_is_asked_for(config: Config) -> None:
    await config.set("a", {"b": 1, "c": 1})
    await config.set("ab", 1)
    await config.merge("", {"a": {"b": 2}, "d": 1})
    await config.set("a.c", 2)
    await config.delete("a")
    async with contextlib.aclosing(watch(config, "a.b", 0)) as versions:
        seen = await take(versions, 3)
    assert [v.version for v in seen] == [1, 3, 5]
    assert seen[1].changes == (Change(path="a.b", kind=Kind.CHANGED, old=1, new=2),)
    assert seen[2].changes == (Change(path="a.b", kind=Kind.REMOVED, old=2),)


async def test_a_watch_goes_on_where_it_ended(config: Config) -> None:
    total = 40

    async def write(part: int) -> None:
        for i in range(total // 4):
            await config.set(f"p{part}", i)

    writers = asyncio.gather(*(write(part) for part in range(4)))
    seen: list[Version] = []
    while len(seen) < total:
        after = seen[-1].version if seen else 0
        async with contextlib.aclosing(watch(config, version=after)) as versions:
            seen += await take(versions, min(7, total - len(seen)))
    await writers
    assert [v.version for v in seen] == [*range(1, total + 1)]


async def test_a_version_that_was_never_given(config: Config) -> None:
    newest = await config.set("a", 1)
    with pytest.raises(Conflict, match=rf"version {newest + 1} .* newest of micro is {newest}\b"):
        await anext(aiter(config.watch(version=newest + 1)))


async def test_many_watch_alike(config: Config) -> None:
    async def follow(after: int) -> list[Version]:
        async with contextlib.aclosing(watch(config, version=after)) as versions:
            return await take(versions, 30 - after)

    for i in range(2):
        await config.set("n", i)
    followers = [asyncio.create_task(follow(i % 3)) for i in range(21)]
    for i in range(2, 30):
        await config.set("n", i)
    found = await asyncio.gather(*followers)
    for i, versions in enumerate(found):
        assert [v.version for v in versions] == [*range(i % 3 + 1, 31)]
        assert versions == found[0][i % 3 :]


async def test_leaving_leaves_nothing(config: Config) -> None:
    await config.set("a", 1)
    await config.version()
    before = len(asyncio.all_tasks())
    watches = [watch(config, version=0) for _ in range(5)]
    for item in watches:
        await anext(item)
    waiting = [asyncio.ensure_future(anext(item)) for item in watches]
    await config.set("b", 1, namespace="other")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    # One for the connection's own work may have come with the first stream.
    await eventually(lambda: len(asyncio.all_tasks()) <= before + 1)


async def test_closing_ends_watches(config: Config) -> None:
    watcher = asyncio.create_task(take(watch(config, version=0), 1))
    await config.set("a", 1, namespace="other")
    await config.close()
    with pytest.raises(Unavailable, match="closed"):
        await watcher
    for attempt in (config.read("a"), config.set("a", 1), config.version()):
        with pytest.raises(Unavailable, match="closed"):
            await attempt
