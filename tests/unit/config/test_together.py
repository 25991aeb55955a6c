"""Several configs on one store, in one process and in several, and a store that dies under them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from micro_ray.config import Config, Version
from micro_ray.config.stored import StoredConfig
from micro_ray.errors import Conflict
from micro_ray.network.network import Network
from micro_ray.router import Delta, Route
from micro_ray.router.table import Table
from micro_ray.store.sqlite import SqliteStore
from micro_ray.wire import store as face
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.server import Server
from micro_ray.wire.store import RemoteStore
from tests.fixtures.configs import keys

ROOT = Path(__file__).resolve().parent.parent.parent.parent


@pytest.fixture
def folder() -> AsyncIterator[Path]:
    # Not tmp_path: the name of a Unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="ct-") as name:
        yield Path(name)  # type: ignore[misc]


@asynccontextmanager
async def stored(folder: Path) -> AsyncIterator[Config]:
    """A config with a store and a key file of its own, over the same files."""
    async with (
        SqliteStore(folder / "store") as store,
        StoredConfig(store, keys(folder)) as config,
    ):
        yield config


async def follow(config: Config, count: int, version: int = 0) -> list[Version]:
    watch = cast("AsyncGenerator[Version, None]", config.watch(version=version))
    async with contextlib.aclosing(watch) as versions, asyncio.timeout(40):
        return [await anext(versions) for _ in range(count)]


async def increment(config: Config, path: str, times: int) -> None:
    for _ in range(times):
        while True:
            found = await config.read(path)
            with contextlib.suppress(Conflict):
                await config.set(path, found.data + 1, expected=found.version)
                break


async def test_two_agree_and_see_each_other(folder: Path) -> None:
    async with stored(folder) as one, stored(folder) as other:
        seen = asyncio.gather(follow(one, 40), follow(other, 40))
        for i in range(10):
            await one.set("a.one", i)
            assert await other.get("a.one") == i
            await other.set("a.other", f"s{i}", secret=True)
            assert await one.get("a.other", secret=True) == f"s{i}"
            await other.rotate()
            await one.merge("a", {"n": i})
            await other.set("m", [i])
        first, second = await seen
        assert first == second
        assert [v.version for v in first] == [*range(1, 41)]
        assert await one.items() == await other.items()
        assert await one.history() == await other.history() == first[::-1]


async def test_many_writers_in_two_lose_nothing(folder: Path) -> None:
    async with stored(folder) as one, stored(folder) as other:
        await one.set("n", 0)
        watchers = asyncio.gather(follow(one, 61), follow(other, 61))
        await asyncio.gather(
            *(increment(config, "n", 5) for config in (one, other) for _ in range(4)),
            *(config.set(f"side.{i}", i) for i, config in enumerate([one, other] * 10)),
        )
        assert await one.get("n") == 40
        assert await other.get("side") == {f"{i}": i for i in range(20)}
        for versions in await watchers:
            assert [v.version for v in versions] == [*range(1, 62)]


# -- a store in a process of its own, which is killed ----------------------------------------------


class StoreProcess:
    """A store on ``<folder>/s.sock``, ended and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, str(self._folder),
            cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert await asyncio.wait_for(self._process.stdout.readline(), 20) == b"ready\n"

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
            await self._process.wait()


@asynccontextmanager
async def remote(folder: Path) -> AsyncIterator[Config]:
    """A config over the store's process."""
    table = Table()
    route = Route(
        id="store-0", namespace="micro", service="store", addresses=(f"unix:{folder}/s.sock",)
    )
    table.apply(Delta(epoch="1", revision=1, full=True, routes=(route,)))
    network = Network(table, WireDialer())
    try:
        async with StoredConfig(RemoteStore(network), keys(folder)) as config:
            yield config
    finally:
        await network.close()


async def test_watches_go_on_through_kills_of_the_store(folder: Path) -> None:
    """Every version once and in order, and every acknowledged write among them exactly once."""
    process = StoreProcess(folder)
    await process.start()
    acknowledged: list[int] = []
    rounds, stop = 3, asyncio.Event()

    async def write(config: Config) -> None:
        number = 0
        while not stop.is_set():
            with contextlib.suppress(Exception):  # the store is not there: try the next
                await config.set("n", number)
                acknowledged.append(number)
            number += 1
            await asyncio.sleep(0.002)

    seen: list[list[Version]] = [[] for _ in range(5)]

    async def see(config: Config, into: list[Version]) -> None:
        watch = cast("AsyncGenerator[Version, None]", config.watch(version=0))
        async with contextlib.aclosing(watch) as versions:
            async for version in versions:
                into.append(version)

    try:
        async with remote(folder) as one, remote(folder) as other:
            writer = asyncio.create_task(write(one))
            readers = [
                asyncio.create_task(see(c, into))
                for c, into in zip([one, other] * 3, seen, strict=False)
            ]
            for _ in range(rounds):
                told = len(seen[0])
                async with asyncio.timeout(20):
                    while min(map(len, seen)) < told + 20:
                        await asyncio.sleep(0.01)
                await process.kill()
                await process.start()
            stop.set()
            await writer
            async with asyncio.timeout(20):
                total = await one.version()
                while min(map(len, seen)) < total:
                    await asyncio.sleep(0.01)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    finally:
        await process.kill()
    for versions in seen:
        assert [v.version for v in versions] == [*range(1, total + 1)]
        assert versions == seen[0]
    values = [v.changes[0].new for v in seen[0]]
    assert len(values) == len(set(values))
    assert set(acknowledged) <= set(values)
    assert values == sorted(values)


async def _serve(folder: Path) -> None:
    async with SqliteStore(folder / "store") as store:
        endpoints = face.endpoints(store)
        async with Server(endpoints.handler, name="store") as server:
            await server.listen(f"unix:{folder}/s.sock")
            print("ready", flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
