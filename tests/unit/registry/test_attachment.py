"""A registration that lasts as long as its stream: the node's side, with registries that come, go,
refuse and hang."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from micro_ray.registry.memory import Capacity, MemoryRegistry
from micro_ray.wire import registry as face
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.registry import Attachment
from micro_ray.wire.server import Incoming, Server
from tests.fixtures.registries import instance
from tests.fixtures.wait import eventually


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="at-") as name:
        yield Path(name)


@asynccontextmanager
async def served(registry: MemoryRegistry, path: Path) -> AsyncIterator[Server]:
    async with Server(face.endpoints(registry).handler) as server:
        await server.listen(f"unix:{path}")
        yield server


@asynccontextmanager
async def attached(*paths: Path, ttl: float = 30.0, **fields: int) -> AsyncIterator[Attachment]:
    addresses = [f"unix:{path}" for path in paths]
    async with Attachment(WireDialer(), addresses, instance(**fields), ttl) as attachment:
        yield attachment


async def known(registry: MemoryRegistry) -> bool:
    return bool((await registry.snapshot()).instances)


async def test_registered_while_it_is_open(folder: Path) -> None:
    registry = MemoryRegistry()
    async with served(registry, folder / "r"):
        async with attached(folder / "r") as attachment:
            await asyncio.wait_for(attachment.ready.wait(), 5)
            assert (await registry.snapshot()).instances == (instance(),)
            assert attachment.settled.is_set()
            assert attachment.refused is None
        # It left in good order: the registry knows before the call returns, or nearly so.
        await eventually(lambda: _not(registry))
        assert not attachment.ready.is_set()
        await attachment.close()
    await registry.close()


async def _not(registry: MemoryRegistry) -> bool:
    return not await known(registry)


async def test_it_waits_for_a_registry_and_follows_it_to_a_new_life(folder: Path) -> None:
    async with attached(folder / "r") as attachment:
        for _ in range(3):
            registry = MemoryRegistry()
            async with served(registry, folder / "r"):
                await asyncio.wait_for(attachment.ready.wait(), 5)
                assert (await registry.snapshot()).instances == (instance(),)
            await eventually(lambda: not attachment.ready.is_set())
            await registry.close()


async def test_the_first_registry_that_answers(folder: Path) -> None:
    registry = MemoryRegistry()
    async with served(registry, folder / "b"), attached(folder / "a", folder / "b") as attachment:
        await asyncio.wait_for(attachment.ready.wait(), 5)
        assert await known(registry)
    await registry.close()


async def test_it_renews_before_its_ttl(folder: Path) -> None:
    registry = MemoryRegistry()
    async with served(registry, folder / "r"), attached(folder / "r", ttl=1.0) as attachment:
        await asyncio.wait_for(attachment.ready.wait(), 5)
        until = asyncio.get_running_loop().time() + 1.4
        start = await registry.snapshot()
        while asyncio.get_running_loop().time() < until:
            assert await registry.snapshot() == start
            await asyncio.sleep(0.02)
        assert attachment.ready.is_set()
    await registry.close()


async def test_a_node_that_was_taken_out_by_hand_comes_back(folder: Path) -> None:
    registry = MemoryRegistry()
    async with served(registry, folder / "r"), attached(folder / "r", ttl=1.0) as attachment:
        await asyncio.wait_for(attachment.ready.wait(), 5)
        await registry.deregister("micro", "n1")
        await eventually(lambda: known(registry))
    await registry.close()


async def test_a_refusal_is_told_and_not_shouted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = MemoryRegistry()
    caplog.set_level(logging.INFO)
    asked: list[float] = []
    endpoints = face.endpoints(registry)

    async def count(incoming: Incoming) -> None:
        asked.append(asyncio.get_running_loop().time())
        await endpoints.handler(incoming)

    async with Server(count) as server:
        await server.listen(f"unix:{folder}/r")
        async with attached(folder / "r", weight=-1) as attachment:
            await asyncio.wait_for(attachment.settled.wait(), 5)
            assert attachment.refused is not None
            assert "node.weight" in attachment.refused.detail
            assert not attachment.ready.is_set()
            # It asks again, ever more seldom: it may have been the registry's fault.
            await eventually(lambda: len(asked) >= 5)
            assert asked[4] - asked[3] > 0.05
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1
    await registry.close()


async def test_a_full_registry_takes_it_later(folder: Path) -> None:
    registry = MemoryRegistry(capacity=Capacity(nodes=1))
    await registry.register(instance(node="other"))
    async with served(registry, folder / "r"), attached(folder / "r") as attachment:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(attachment.settled.wait(), 0.1)
        await registry.deregister("micro", "other")
        await asyncio.wait_for(attachment.ready.wait(), 5)
    await registry.close()


async def test_a_registry_that_hangs_is_left(folder: Path) -> None:
    """One takes the stream and never answers; the next attempt comes after the TTL."""
    registry = MemoryRegistry()
    hung = asyncio.Event()
    endpoints = face.endpoints(registry)

    async def first_hangs(incoming: Incoming) -> None:
        if not hung.is_set():
            hung.set()
            await asyncio.Event().wait()
        await endpoints.handler(incoming)

    async with Server(first_hangs) as server:
        await server.listen(f"unix:{folder}/r")
        async with attached(folder / "r", ttl=1.0) as attachment:
            await asyncio.wait_for(attachment.ready.wait(), 5)
            assert hung.is_set()
            assert await known(registry)
    await registry.close()


async def test_closing_leaves_no_task(folder: Path) -> None:
    before = asyncio.all_tasks()
    for there in (True, False):
        registry = MemoryRegistry()
        async with contextlib.AsyncExitStack() as stack:
            if there:
                await stack.enter_async_context(served(registry, folder / "r"))
            attachment = await stack.enter_async_context(attached(folder / "r"))
            if there:
                await asyncio.wait_for(attachment.ready.wait(), 5)
        await registry.close()
    assert asyncio.all_tasks() == before
