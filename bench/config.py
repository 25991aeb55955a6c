"""How long a write of config takes to reach 100 watchers, over real frames: store (SQLite) and
config in one process, watchers and writer in another. Beside it, in the same run, what the write
itself takes: a watcher may know before the writer does."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from bench.measure import latencies
from bench.stack import ROOT

__all__ = ["run"]

WATCHERS = 100


async def _source(folder: Path) -> None:
    """The child: a store in SQLite and a config that calls it, each on its socket."""
    from micro_ray.config.stored import StoredConfig
    from micro_ray.sealing import KeyFile
    from micro_ray.store.sqlite import SqliteStore
    from micro_ray.wire import config as config_face
    from micro_ray.wire import store as store_face
    from micro_ray.wire.server import Server
    from micro_ray.wire.store import RemoteStore

    async with (
        SqliteStore(folder / "store") as store,
        Server(store_face.endpoints(store).handler) as first,
        _calling(folder, "store") as network,
        StoredConfig(RemoteStore(network), KeyFile(folder / "keys")) as config,
        Server(config_face.endpoints(config).handler) as second,
    ):
        await first.listen(f"unix:{folder}/store.sock")
        await second.listen(f"unix:{folder}/config.sock")
        print("ready", flush=True)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _calling(folder: Path, service: str):  # type: ignore[no-untyped-def]
    """A network that knows one node of one service."""
    from micro_ray.network.network import Network
    from micro_ray.router import Delta, Route
    from micro_ray.router.table import Table
    from micro_ray.wire.dialer import WireDialer

    table = Table()
    route = Route(
        id=f"{service}-0",
        namespace="micro",
        service=service,
        addresses=(f"unix:{folder}/{service}.sock",),
    )
    table.apply(Delta(epoch="1", revision=1, full=True, routes=(route,)))
    network = Network(table, WireDialer())
    try:
        yield network
    finally:
        await network.close()


async def run(*, quick: bool) -> str:
    from micro_ray.wire.config import RemoteConfig

    writes = 50 if quick else 500
    reached: list[float] = []
    took: list[float] = []
    with tempfile.TemporaryDirectory(prefix="mb-") as name:
        folder = Path(name)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.config", name, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout
        if await child.stdout.readline() != b"ready\n":
            raise SystemExit("bench: the config did not start")
        try:
            async with _calling(folder, "config") as network:
                config = RemoteConfig(network)
                await config.set("bench.number", -1)
                watches = [config.watch("bench", version=0) for _ in range(WATCHERS)]
                await asyncio.gather(*map(anext, watches))
                for number in range(writes):
                    seen = [asyncio.create_task(_sees(watch, number)) for watch in watches]
                    await asyncio.sleep(0)
                    begun = time.perf_counter()
                    await config.set("bench.number", number)
                    took.append(time.perf_counter() - begun)
                    reached += [at - begun for at in await asyncio.gather(*seen)]
        finally:
            child.kill()
            await child.wait()
    rows = {"write to watcher": reached, "write acknowledged": took}
    return latencies(
        f"A write of config reaches {WATCHERS} watchers ({writes} writes, SQLite)", rows
    )


async def _sees(watch: object, number: int) -> float:
    version = await anext(watch)  # type: ignore[call-overload]
    at = time.perf_counter()
    if [change.new for change in version.changes] != [number]:
        raise SystemExit("bench: a watcher saw something else")
    return at


if __name__ == "__main__":
    import uvloop

    uvloop.run(_source(Path(sys.argv[1])))
