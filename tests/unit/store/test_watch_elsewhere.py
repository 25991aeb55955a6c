"""Two members on the same data: a watch at one from a version that the other has just given."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from micro_ray.errors import Conflict
from micro_ray.store import Change, Store
from micro_ray.store.postgres import PostgresStore
from micro_ray.store.sqlite import SqliteStore
from tests.fixtures.postgres import schema

Pair = tuple[Store, Store]


@pytest.fixture(params=["sqlite", "postgres"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if request.param == "sqlite":
            yield await enter(SqliteStore(tmp_path)), await enter(SqliteStore(tmp_path))
            return
        up = request.getfixturevalue("postgres")
        url = up.url(await enter(schema(up.url())))
        yield await enter(PostgresStore(url)), await enter(PostgresStore(url))


async def first(store: Store, revision: int) -> Change:
    watch = store.watch(revision=revision)
    async with asyncio.timeout(10), contextlib.aclosing(watch) as changes:  # type: ignore[type-var]  # it is a generator
        return await anext(changes)


@pytest.mark.parametrize("watched", [False, True], ids=["alone", "watched"])
async def test_what_another_member_has_just_given_is_not_beyond(pair: Pair, watched: bool) -> None:
    """Whether or not others watch here, who have not heard of it yet."""
    one, other = pair
    await one.write("begin", b"")
    async with contextlib.AsyncExitStack() as stack:
        if watched:
            watch = other.watch(revision=await one.revision(), table="quiet")
            waiting = asyncio.ensure_future(anext(watch))
            stack.callback(waiting.cancel)
            await asyncio.sleep(0)
        for number in range(50):
            given = (await one.write("k", b"%d" % number)).version
            going_on = asyncio.create_task(first(other, given))
            await asyncio.sleep(0)
            assert (await one.write("next", b"")).version == given + 1
            assert (await going_on).revision == given + 1
            with pytest.raises(Conflict, match=f"is beyond the newest, {given + 1}"):
                await first(other, given + 2)
