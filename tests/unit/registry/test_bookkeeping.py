"""The memory registry's own books: they do not grow with what passes, and they are bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from micro_ray.errors import Conflict, TooManyRequests
from micro_ray.registry import Endpoint, Instance
from micro_ray.registry.memory import Capacity, MemoryRegistry
from tests.fixtures.registries import Clock, instance
from tests.fixtures.wait import eventually


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def closing(registry: MemoryRegistry) -> AsyncIterator[MemoryRegistry]:
    yield registry
    await registry.close()
    assert len(asyncio.all_tasks()) == 1


def entries(registry: MemoryRegistry) -> int:
    """What waits for its time to be looked at."""
    return len(registry._expiry)


async def test_ten_thousand_renewals_leave_one_entry_per_lease(clock: Clock) -> None:
    async with closing(MemoryRegistry(clock=clock)) as registry:
        for node in ("a", "b"):
            await registry.register(instance(node=node), ttl=10)
        for _ in range(5_000):
            clock.now += 0.01
            await registry.register(instance(node="a"), ttl=10)
            assert await registry.renew("micro", ["b"]) == []
            registry.expire()
        assert entries(registry) == 2
        assert len((await registry.snapshot()).instances) == 2
        assert (await registry.snapshot()).revision == 2
        clock.now += 9.9
        registry.expire()
        assert len((await registry.snapshot()).instances) == 2
        clock.now += 0.2
        registry.expire()
        assert (await registry.snapshot()).instances == ()
        assert entries(registry) == 0


async def test_nodes_that_come_and_go_leave_nothing(clock: Clock) -> None:
    async with closing(MemoryRegistry(clock=clock)) as registry:
        await registry.register(instance(node="stays"), ttl=5)
        for number in range(10_000):
            await registry.register(instance(node=f"n{number}"), ttl=3600)
            await registry.deregister("micro", f"n{number}")
        assert entries(registry) < 200
        # What stays still ends in its time, though its entry was moved about.
        clock.now += 5.1
        registry.expire()
        assert (await registry.snapshot()).instances == ()


async def test_a_ttl_that_goes_up_and_down(clock: Clock) -> None:
    async with closing(MemoryRegistry(clock=clock)) as registry:
        for number in range(10_000):
            await registry.register(instance(), ttl=3600 if number % 2 else 1)
            clock.now += 0.5
            registry.expire()
        assert entries(registry) < 200
        assert len((await registry.snapshot()).instances) == 1


async def test_a_lease_of_an_earlier_registration_does_not_end_the_new_one(clock: Clock) -> None:
    async with closing(MemoryRegistry(clock=clock)) as registry:
        await registry.register(instance(), ttl=5)
        await registry.deregister("micro", "n1")
        await registry.register(instance(), ttl=60)
        clock.now += 6
        registry.expire()
        assert len((await registry.snapshot()).instances) == 1


async def test_places_run_out() -> None:
    registry = MemoryRegistry(capacity=Capacity(nodes=3))
    async with closing(registry):
        for node in ("a", "b", "c"):
            await registry.register(instance(node=node))
        with pytest.raises(TooManyRequests, match="all 3 places are taken") as caught:
            await registry.register(instance(node="d"))
        assert caught.value.retry_after
        await registry.register(instance(node="c", weight=1))  # has its place
        await registry.deregister("micro", "a")
        await registry.register(instance(node="d"))
        assert [i.node.id for i in (await registry.snapshot()).instances] == ["b", "c", "d"]


async def test_room_runs_out() -> None:
    def sized(node: str, size: int) -> Instance:
        return instance(node=node, endpoints=(Endpoint(name="A.B", request={"d": "x" * size}),))

    registry = MemoryRegistry(capacity=Capacity(size=100_000))
    async with closing(registry):
        await registry.register(sized("a", 60_000))
        with pytest.raises(TooManyRequests, match="all 100000 bytes are taken"):
            await registry.register(sized("b", 60_000))
        await registry.register(sized("b", 30_000))
        await registry.register(sized("a", 60_001))  # in the room that it had
        with pytest.raises(TooManyRequests, match="bytes"):
            await registry.register(sized("b", 50_000))
        for _ in range(3):
            await registry.deregister("micro", "a")  # once is once
        await registry.register(sized("c", 60_000))
        assert [i.node.id for i in (await registry.snapshot()).instances] == ["b", "c"]


async def test_history_is_kept_to_the_last_change() -> None:
    registry = MemoryRegistry(capacity=Capacity(history=10))
    async with closing(registry):
        start = await registry.snapshot()
        for number in range(15):
            await registry.register(instance(node=f"n{number}"))
        with pytest.raises(Conflict, match="revision 4 is no longer kept"):
            await anext(registry.watch(epoch=start.epoch, revision=4))
        watch = registry.watch(epoch=start.epoch, revision=5)
        assert [(await anext(watch)).revision for _ in range(10)] == list(range(6, 16))
        await watch.aclose()  # type: ignore[attr-defined]


async def test_history_is_bounded_in_bytes_too() -> None:
    endpoint = Endpoint(name="A.B", request={"d": "x" * 1_000})
    registry = MemoryRegistry(capacity=Capacity(history=1_000, history_size=20_000))
    async with closing(registry):
        start = await registry.snapshot()
        for number in range(100):
            await registry.register(instance(node=f"n{number}", endpoints=(endpoint,)))
        with pytest.raises(Conflict, match="no longer kept"):
            await anext(registry.watch(epoch=start.epoch, revision=50))
        change = await anext(registry.watch(epoch=start.epoch, revision=90))
        assert change.revision == 91


async def test_a_registry_that_stood_still_drops_nobody_who_lives() -> None:
    """A process that was stopped, or starved, finds the leases over and the renewals unread."""
    registry = MemoryRegistry(sweep=0.1)
    async with closing(registry):
        await registry.register(instance(node="alive"), ttl=1)
        await registry.register(instance(node="dead"), ttl=1)
        await asyncio.sleep(0)  # its task is under way
        time.sleep(1.6)  # noqa: ASYNC251 - the standstill itself
        asyncio.get_running_loop().call_later(
            0.5, lambda: asyncio.ensure_future(registry.renew("micro", ["alive"]))
        )

        async def only_the_living() -> bool:
            return [i.node.id for i in (await registry.snapshot()).instances] == ["alive"]

        await eventually(only_the_living, within=3)
