"""What every config does: versions, their differences, and the way back."""

from __future__ import annotations

import pytest

from micro_ray.config import Action, Change, Config, Kind
from micro_ray.errors import Conflict, NotFound
from tests.fixtures.configs import LIMITS
from tests.fixtures.stores import Clock


async def test_every_write_is_told(config: Config, clock: Clock) -> None:
    begun = clock.now
    await config.set("a.b", 1, by="ann")
    clock.now += 5
    await config.merge("a", {"b": 2, "c": [3]}, by="bob")
    await config.delete("a.b")
    await config.rollback(1, by="ann")
    found = await config.history()
    told = [(v.version, v.action, v.author, v.path, v.time - begun) for v in found]
    assert told == [
        (4, Action.ROLLBACK, "ann", "", 5), (3, Action.DELETE, "", "a.b", 5),
        (2, Action.MERGE, "bob", "a", 5), (1, Action.SET, "ann", "a.b", 0),
    ]  # fmt: skip
    assert found[0].changes == (
        Change(path="a.b", kind=Kind.ADDED, new=1),
        Change(path="a.c", kind=Kind.REMOVED, old=[3]),
    )
    assert found[1].changes == (Change(path="a.b", kind=Kind.REMOVED, old=2),)
    assert found[2].changes == (
        Change(path="a.b", kind=Kind.CHANGED, old=1, new=2),
        Change(path="a.c", kind=Kind.ADDED, new=[3]),
    )


async def test_history_of_a_path_and_in_pages(config: Config) -> None:
    for i in range(6):
        await config.set(f"p{i % 2}.x", i)
    assert [v.version for v in await config.history("p1")] == [6, 4, 2]
    assert [v.version for v in await config.history("p1.x", limit=2)] == [6, 4]
    assert [v.version for v in await config.history("p1", limit=2, before=4)] == [2]
    assert [v.version for v in await config.history(before=3)] == [2, 1]
    assert await config.history("p2") == await config.history(before=1) == []


async def test_diff(config: Config) -> None:
    await config.set("a", {"b": 1, "c": 2})
    await config.set("a.b", 5)
    await config.set("a.b", 1)
    await config.delete("a.c")
    assert await config.diff(1, 3) == []
    assert await config.diff(1, 2) == [Change(path="a.b", kind=Kind.CHANGED, old=1, new=5)]
    assert await config.diff(2, 1) == [Change(path="a.b", kind=Kind.CHANGED, old=5, new=1)]
    assert await config.diff(1) == [Change(path="a.c", kind=Kind.REMOVED, old=2)]
    assert await config.diff(0, path="a.b") == [Change(path="a.b", kind=Kind.ADDED, new=1)]
    assert await config.diff(4, 1) == [Change(path="a.c", kind=Kind.ADDED, new=2)]


async def test_an_object_is_told_by_its_members(config: Config) -> None:
    await config.set("a", {})
    await config.set("a.b", 1)
    await config.delete("a.b")
    await config.delete("a")
    told = [[(c.path, c.kind) for c in v.changes] for v in await config.history()]
    assert told == [
        [("a", Kind.REMOVED)], [("a.b", Kind.REMOVED)], [("a.b", Kind.ADDED)], [("a", Kind.ADDED)],
    ]  # fmt: skip


async def test_older_versions_can_be_read(config: Config) -> None:
    await config.set("a.b", 1)
    await config.set("a", [2])
    await config.delete("a")
    assert (await config.read(at=1)).data == {"a": {"b": 1}}
    assert (await config.read("a", at=2)).data == [2]
    assert (await config.read(at=3)).data == {}
    assert (await config.read("a", at=2)).version == 2
    with pytest.raises(NotFound, match="in version 2"):
        await config.read("a.b", at=2)


async def test_rollback_of_all_and_of_a_path(config: Config) -> None:
    await config.set("", {"a": {"b": 1}, "c": 2})
    await config.set("", {"a": 3, "d": 4})
    assert await config.rollback(1, path="a") == 3
    assert await config.get() == {"a": {"b": 1}, "d": 4}
    await config.rollback(1, path="d")
    assert await config.get() == {"a": {"b": 1}}
    await config.rollback(2)
    assert await config.get() == {"a": 3, "d": 4}
    await config.rollback(0)
    assert await config.get() == {}
    assert await config.version() == 6


async def test_the_history_is_bounded(config: Config) -> None:
    total = LIMITS.history + 20
    for i in range(1, total + 1):
        await config.set("n", i)
    oldest = total - LIMITS.history + 1
    assert [v.version for v in await config.history(limit=1000)] == [*range(total, oldest - 1, -1)]
    # An entry tells what was before it, so the version before the oldest can be had too.
    assert (await config.read("n", at=oldest - 1)).data == oldest - 1
    for attempt in (
        config.read("n", at=oldest - 2),
        config.rollback(oldest - 2),
        config.diff(1),
        anext(config.watch(version=1)),
    ):
        with pytest.raises(Conflict, match="no longer kept"):
            await attempt
    await config.rollback(oldest)
    assert await config.get("n") == oldest
