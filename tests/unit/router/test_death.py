"""A node that dies or falls silent leaves every caller's table: registry, router and callers over
real frames, the node in a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from micro_ray.router.derive import Router
from micro_ray.router.table import Table
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.registry import RemoteRegistry
from micro_ray.wire.router import Follower
from tests.fixtures.lines import RegistryPlace, router_at
from tests.fixtures.node import node
from tests.fixtures.wait import PROMPT, eventually

CALLERS = 20


@pytest.fixture
async def tables(folder: Path, place: RegistryPlace) -> AsyncIterator[list[Table]]:
    """Those of many callers, each following one router."""
    remote = RemoteRegistry(WireDialer(), [place.address])
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(Router(remote))
        behind = await stack.enter_async_context(router_at(folder / "router.sock", router))
        tables = [Table() for _ in range(CALLERS)]
        for table in tables:
            follower = Follower(WireDialer(), [behind.address], table)
            await stack.enter_async_context(follower)
        yield tables
    await remote.close()


async def all_have(tables: list[Table], *ids: str, within: float = 5.0) -> None:
    await eventually(
        lambda: all([r.id for r in t.lookup("micro", "node")] == list(ids) for t in tables),
        within=within,
        every=0.001,
    )


async def test_a_killed_process_is_out_of_every_table_at_once(
    folder: Path, tables: list[Table], capsys: pytest.CaptureFixture[str]
) -> None:
    """Long before its TTL of half a minute; how long it took is told, and measured by the bench."""
    async with node(folder, "stays"):
        took = []
        for number in range(3):
            async with node(folder, f"dies-{number}") as child:
                await all_have(tables, f"dies-{number}", "stays")
                begun = time.perf_counter()
                child.kill()
                await all_have(tables, "stays", within=PROMPT)
                took.append(time.perf_counter() - begun)
        with capsys.disabled():
            print(f" [out of {CALLERS} tables {max(took) * 1000:.1f} ms after kill -9] ", end="")


async def test_a_process_that_leaves_is_out_before_it_refuses_calls(
    folder: Path, tables: list[Table]
) -> None:
    async with node(folder, "stays"), node(folder, "leaves") as child:
        await all_have(tables, "leaves", "stays")
        child.end()
        await all_have(tables, "stays", within=PROMPT)
        assert await asyncio.wait_for(child.wait(), 10) == 0


async def test_a_silent_one_is_out_after_its_ttl_and_comes_back(
    folder: Path, tables: list[Table]
) -> None:
    """Its sockets stay open: only the lease ends. That it does so within a second of the TTL is for
    the registry's suite, which has a clock of its own."""
    async with node(folder, "silent", ttl=3.0) as child:
        await all_have(tables, "silent")
        begun = time.perf_counter()
        child.stop()
        await all_have(tables, within=PROMPT)
        # The last renewal was a third of the TTL ago, or a little more.
        assert time.perf_counter() - begun > 1
        child.go_on()
        await all_have(tables, "silent")


async def test_a_registry_that_dies_takes_no_node_with_it(
    folder: Path, place: RegistryPlace, tables: list[Table]
) -> None:
    async with node(folder, "stays"):
        await all_have(tables, "stays")
        await place.close()
        await eventually(lambda: all(table.stale for table in tables))
        await all_have(tables, "stays")
        await place.open()
        await eventually(lambda: not any(table.stale for table in tables))
        snapshot = place.registry.snapshot
        await eventually(lambda: _one(snapshot))
        await all_have(tables, "stays")


async def _one(snapshot: object) -> bool:
    return len((await snapshot()).instances) == 1  # type: ignore[operator]
