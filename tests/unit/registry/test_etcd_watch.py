"""Watching etcd through lines that break: nothing is lost, nothing comes twice, nothing hangs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from micro_ray.errors import Conflict, Unavailable
from micro_ray.registry import Action, Change, Instance, Registry
from micro_ray.registry.etcd import EtcdRegistry
from micro_ray.registry.etcd_url import parse
from micro_ray.router.derive import Router
from tests.fixtures.etcd import EtcdServer, server
from tests.fixtures.history import watched
from tests.fixtures.proxy import proxy
from tests.fixtures.registries import Clock, instance
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def etcd() -> AsyncIterator[EtcdServer]:
    async with server() as up:
        yield up


@asynccontextmanager
async def registry(prefix: str, *ports: int, patience: float = 5.0) -> AsyncIterator[EtcdRegistry]:
    url = f"etcd://{','.join(f'127.0.0.1:{port}' for port in ports)}"
    async with EtcdRegistry(parse(url), prefix=prefix, patience=patience, attempt=0.5) as opened:
        yield opened


async def ids(registry: Registry) -> list[str]:
    return [i.node.id for i in (await registry.snapshot()).instances]


async def churn(registry: Registry, dice: random.Random, count: int) -> None:
    for _ in range(count):
        node = f"n{dice.randrange(9)}"
        if dice.random() < 0.6:
            await registry.register(instance(node=node, weight=dice.randrange(4)))
        else:
            await registry.deregister("micro", node)


async def test_a_line_that_is_cut_again_and_again(etcd: EtcdServer) -> None:
    async with (
        proxy(etcd.port) as between,
        registry("cut", etcd.port) as direct,
        registry("cut", between.port) as behind,
        watched(behind) as history,
    ):
        dice = random.Random(11)

        async def write() -> None:
            while between.count < 12:
                await churn(direct, dice, 10)

        writing = asyncio.gather(*(write() for _ in range(4)))
        while not writing.done():
            # Wherever it is; but it must have got somewhere.
            target = history.changes + dice.randrange(1, 9)
            await eventually(lambda n=target: history.changes >= n or writing.done(), within=20)
            between.cut()
        await writing
        await eventually(lambda: history.same_as(direct))
        assert history.begun == 1  # it went on by itself


async def test_a_break_in_catch_up(etcd: EtcdServer) -> None:
    """etcd sends what was missed in parts of a thousand revisions, each with the newest revision in
    its head: who goes on from that loses the rest."""
    total, seen = 1500, list[Change]()
    async with proxy(etcd.port) as between, registry("late", etcd.port) as direct:
        start = await direct.snapshot()
        many = [instance(node=f"n{number}") for number in range(total)]
        for part in range(0, total, 100):
            await asyncio.gather(*(direct.register(each) for each in many[part : part + 100]))
        end = await direct.snapshot()
        async with registry("late", between.port) as behind:
            between.delay = 0.005
            async for change in behind.watch(epoch=start.epoch, revision=start.revision):
                seen.append(change)
                if len(seen) in (1, 700, 1100):
                    between.cut()
                if len(seen) == total:
                    break
    assert [c.instance for c in seen] == [*end.instances]
    assert [c.revision for c in seen] == sorted({c.revision for c in seen})
    assert seen[-1].revision == end.revision


async def test_a_history_that_is_compacted_while_the_line_is_cut(etcd: EtcdServer) -> None:
    """It ends with the Conflict at once; it does not hang, and does not go on with a gap."""
    async with (
        proxy(etcd.port) as between,
        registry("gap", etcd.port) as direct,
        registry("gap", between.port, patience=20) as behind,
        watched(behind) as history,
    ):
        await direct.register(instance(node="a"))
        await eventually(lambda: history.changes == 1)
        between.refusing = True
        between.cut()
        await direct.register(instance(node="b"))
        await direct.deregister("micro", "a")
        await etcd.compact()
        between.refusing = False
        error = await eventually(lambda: history.error)
        assert isinstance(error, Conflict)
        assert "is no longer kept" in error.detail
        assert history.changes == 1


async def test_a_router_heals_over_a_compaction(etcd: EtcdServer) -> None:
    """By a snapshot and what differs: watchers of the router get a change, no new table."""
    async with (
        proxy(etcd.port) as between,
        registry("heal", etcd.port) as direct,
        registry("heal", between.port, patience=20) as behind,
    ):
        await direct.register(instance(node="goes"))
        await direct.register(instance(node="stays"))
        async with Router(behind, clock=Clock()) as router:
            await eventually(lambda: len(router.table.lookup("micro", "greeter")) == 2)
            deltas = router.watch()
            assert (await anext(deltas)).full
            between.refusing = True
            between.cut()
            await direct.deregister("micro", "goes")
            await direct.register(instance(node="comes"))
            await etcd.compact()
            between.refusing = False
            while not (delta := await anext(deltas)).routes:
                assert not delta.full
            assert not delta.full
            assert ([r.id for r in delta.routes], delta.gone) == (["comes"], (("micro", "goes"),))
            table = [r.id for r in router.table.lookup("micro", "greeter")]
            assert table == ["comes", "stays"]
            assert not router.table.stale
            await deltas.aclose()  # type: ignore[attr-defined]


async def test_a_server_that_says_nothing_is_left(etcd: EtcdServer) -> None:
    """The line stands, and nothing comes through: the watch asks, and goes elsewhere."""
    async with (
        proxy(etcd.port) as first,
        registry("mute", etcd.port) as direct,
        registry("mute", first.port, etcd.port) as behind,
        watched(behind) as history,
    ):
        await direct.register(instance(node="a"))
        await eventually(lambda: history.changes == 1)
        first.stall()
        await direct.register(instance(node="b"))
        await eventually(lambda: history.changes == 2, within=15)
        assert history.begun == 1
        first.resume()
        await direct.register(instance(node="c"))
        await eventually(lambda: history.same_as(direct))


async def test_a_quiet_registry_is_not_taken_for_a_broken_one(etcd: EtcdServer) -> None:
    async with (
        proxy(etcd.port) as between,
        registry("quiet", between.port) as behind,
        watched(behind) as history,
    ):
        await eventually(lambda: history.begun == 1)
        lines = between.count
        await asyncio.sleep(4.5)  # longer than a server may be silent
        await behind.register(instance())
        await eventually(lambda: history.changes == 1)
        assert (history.begun, between.count) == (1, lines)


async def test_it_says_when_no_server_is_left(etcd: EtcdServer) -> None:
    async with proxy(etcd.port) as between, registry("end", between.port, patience=0.5) as behind:
        async with watched(behind) as history:
            await behind.register(instance())
            await eventually(lambda: history.changes == 1)
            between.refusing = True
            between.cut()
            error = await eventually(lambda: history.error)
            assert isinstance(error, Unavailable)
            assert f"waiting for etcd at 127.0.0.1:{between.port}" in error.detail
            between.refusing = False
        async with watched(behind) as history:
            await behind.register(instance(weight=1))
            await eventually(lambda: history.changes == 1)


async def test_a_hand_that_takes_all_out_at_once(etcd: EtcdServer) -> None:
    """Several changes of one revision: who was given one of them goes on before the others."""
    async with registry("hand", etcd.port) as here:
        for node in "abc":
            await here.register(instance(node=node))
        start = await here.snapshot()
        await etcd.ask("kv/deleterange", key=b"/hand/registry/n", range_end=b"/hand/registry/o")
        at, gone = start.revision, list[Instance]()
        for _ in range(3):
            watch = here.watch(epoch=start.epoch, revision=at)
            changes = [await anext(watch) for _ in range(len(gone) + 1)]
            await watch.aclose()  # type: ignore[attr-defined]
            assert all(change.action is Action.DELETE for change in changes)
            gone.append(changes[-1].instance)
            at = changes[0].revision
        assert gone == [*start.instances]
        assert changes[-1].revision == (await here.snapshot()).revision


async def test_what_is_no_registration_is_passed_over(etcd: EtcdServer) -> None:
    async with registry("alien", etcd.port) as here, watched(here) as history:
        key = b"/alien/registry/nodes/micro/n0"
        await etcd.ask("kv/put", key=key, value=b"what is this?")
        await here.register(instance())
        assert await ids(here) == ["n1"]
        await eventually(lambda: history.changes == 1)
        await here.register(instance(node="n0"))  # takes its place
        assert await ids(here) == ["n1", "n0"]
        await etcd.ask("kv/put", key=key, value=b"again")
        await here.deregister("micro", "n0")
        assert await ids(here) == ["n1"]


async def test_a_server_that_lost_everything_is_another_life() -> None:
    async with server() as own, registry("life", own.port) as here:
        await here.register(instance())
        for _ in range(9):
            await here.register(instance(node="other"))
            await here.deregister("micro", "other")
        async with watched(here) as history:
            await own.kill()
            own.wipe()
            await own.start()
            error = await eventually(lambda: history.error, within=10)
        assert isinstance(error, Conflict)
        assert "another life" in error.detail
        again = await here.snapshot()
        assert again.epoch != history.epoch
        assert again.instances == ()
        # A node that it remembers is registered anew, not merely renewed.
        await here.register(instance())
        assert await ids(here) == ["n1"]
