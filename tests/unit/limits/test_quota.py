"""What a namespace may keep in the store, and when it is counted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from micro_ray.errors import TooLarge
from micro_ray.limits.gate import Gate
from micro_ray.limits.quota_store import QuotaStore
from micro_ray.limits.rules import Rules, quota_of
from micro_ray.limits.tally import AGAIN, EVERY
from micro_ray.store import Put
from micro_ray.store.memory import MemoryStore
from tests.fixtures.wait import PROMPT, eventually


class World:
    """Two members over one store, as two actors are over one database."""

    def __init__(self, **quota: int) -> None:
        self.now = 0.0
        self.store = MemoryStore()
        self.gate = Gate(kinds=())
        self.set(**quota)
        self.members = [QuotaStore(self.store, self.gate, clock=lambda: self.now) for _ in range(2)]

    def set(self, **quota: int) -> None:
        self.gate.follow("micro")
        self.gate.rule("micro", Rules((), 1, quota_of({"store": quota})))


async def test_records_and_bytes_are_bounded() -> None:
    world = World(records=3)
    member = world.members[0]
    for i in range(3):
        await member.write(f"k{i}", b"x")
    with pytest.raises(TooLarge) as raised:
        await member.write("more", b"x")
    assert raised.value.detail == (
        "namespace micro may keep 3 records in the store and keeps 3; remove what is not needed, "
        "or have its quota raised (config limits.store)"
    )
    world.set(bytes=20)
    await member.write("k0", b"y" * 12)  # the others have 3 each: now 20
    world.now += AGAIN
    with pytest.raises(TooLarge, match="may keep 20 bytes in the store and keeps 20"):
        await member.transact([Put(key="k4", value=b"")])
    assert len(await world.store.keys()) == 3


async def test_what_is_replaced_or_removed_makes_room() -> None:
    world = World(bytes=100)
    member = world.members[0]
    for _ in range(10):
        await member.write("k", b"x" * 60)
        world.now += AGAIN
    await member.delete("k")
    world.now += AGAIN
    await member.write("other", b"x" * 90)


async def test_others_are_counted_in_time() -> None:
    world = World(records=10)
    one, two = world.members
    await one.write("first", b"")
    for i in range(9):
        await two.write(f"k{i}", b"")
    await one.write("over", b"")  # it has not counted again: that is the error
    world.now += EVERY
    await one.write("at once", b"")  # what is there is counted beside it
    names = map(str, itertools.count())
    await eventually(lambda: _refused(one, next(names)), within=PROMPT)
    await one.close()


async def _refused(member: QuotaStore, key: str) -> bool:
    await member.write("at once", b"1")  # in place of what is there: it may always
    try:
        await member.write(key, b"")
    except TooLarge:
        return True
    return False


async def test_writes_that_come_together_do_not_pass_together() -> None:
    world = World(records=10)
    done = await asyncio.gather(
        *(world.members[0].write(f"k{i}", b"") for i in range(50)), return_exceptions=True
    )
    assert sum(not isinstance(one, Exception) for one in done) == 10
    assert (await world.store.usage()).records == 10


async def test_blobs_count_and_others_do_not() -> None:
    world = World(bytes=1000)
    member = world.members[0]

    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 100

    await member.write_blob("nine", chunks(9))
    with pytest.raises(TooLarge):
        await member.write_blob("two", chunks(2))
    assert [blob.key for blob in await world.store.blobs()] == ["nine"]
    await member.write("in another", b"x" * 5000, namespace="tenant")
    await member.write("k", b"x" * 5000, database="config")
    await member.read("k", database="config")


async def test_without_a_quota_nothing_is_counted() -> None:
    world = World()
    await world.members[0].write("k", b"x" * 5000)
    assert len(world.members[0]._tallies) == 0
