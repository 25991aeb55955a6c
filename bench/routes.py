"""How long a change of routes takes from the registry to 100 watchers (doors and clients hold the
same :class:`Follower`), over real frames: registry, router and watchers in three processes, and a
process for each node that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from bench.measure import latencies
from bench.stack import ROOT
from micro_ray.registry import Instance, Node
from micro_ray.registry.memory import MemoryRegistry
from micro_ray.router.derive import Router
from micro_ray.router.table import Table
from micro_ray.wire import registry as registry_face
from micro_ray.wire import router as router_face
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.host import Host
from micro_ray.wire.registry import RemoteRegistry
from micro_ray.wire.router import Follower
from micro_ray.wire.server import Server

__all__ = ["run"]

WATCHERS = 100
SERVICE = "probe"
#: Processes of nodes at a time.
NODES = 10


async def run(*, quick: bool) -> str:
    """One table: nodes that register, and nodes whose process is killed (``kill -9``)."""
    changes, kills = (50, 10) if quick else (500, 100)
    with tempfile.TemporaryDirectory(prefix="mb-") as name:
        folder = Path(name)
        async with _child("source", folder), _watchers(folder) as tables:
            rows = {
                f"a node registers ({changes} times)": await _added(folder, tables, changes),
                f"a node's process is killed ({kills} times)": await _killed(folder, tables, kills),
            }
    return latencies(f"A route change reaches {WATCHERS} watchers", rows)


async def _added(folder: Path, tables: Sequence[Table], changes: int) -> list[float]:
    """Seconds from the registration to each table."""
    took: list[float] = []
    registry = RemoteRegistry(WireDialer(), [f"unix:{folder}/registry-0.sock"])
    try:
        for number in range(changes):
            node = Node(id=f"n{number}", addresses=("unix:/tmp/none.sock",))

            async def register(node: Node = node) -> None:
                await registry.register(Instance(service=SERVICE, node=node))

            took += await _change(register, tables, {node.id}, there=True)
    finally:
        await registry.close()
    return took


async def _killed(folder: Path, tables: Sequence[Table], kills: int) -> list[float]:
    """Seconds from ``kill -9`` of a node's process until it is in no table."""
    took: list[float] = []
    for begin in range(0, kills, NODES):
        async with contextlib.AsyncExitStack() as stack:
            pids = {}
            for number in range(begin, min(begin + NODES, kills)):
                node = f"victim-{number}"
                pids[node] = await stack.enter_async_context(_child("node", folder, node))
            await asyncio.gather(*(_sees(table, pids.keys(), there=True) for table in tables))
            for node, pid in pids.items():

                async def kill(pid: int = pid) -> None:
                    os.kill(pid, signal.SIGKILL)

                took += await _change(kill, tables, {node}, there=False)
    return took


async def _change(
    change: Callable[[], Awaitable[None]], tables: Sequence[Table], nodes: set[str], *, there: bool
) -> list[float]:
    """Seconds from the beginning of a change until each table shows it."""
    seen = [asyncio.create_task(_sees(table, nodes, there=there)) for table in tables]
    await asyncio.sleep(0)  # all are waiting
    begun = time.perf_counter()
    await change()
    return [at - begun for at in await asyncio.gather(*seen)]


async def _sees(table: Table, nodes: Iterable[str], *, there: bool) -> float:
    """When a table has all of some nodes, or none of them."""
    wanted = set(nodes)
    while True:
        having = wanted & {route.id for route in table.lookup("micro", SERVICE)}
        if having == (wanted if there else set()):
            return time.perf_counter()
        await table.changed()


@contextlib.asynccontextmanager
async def _watchers(folder: Path) -> AsyncIterator[list[Table]]:
    async with contextlib.AsyncExitStack() as stack:
        dialer = WireDialer()
        tables = []
        for _ in range(WATCHERS):
            table = Table()
            follower = Follower(dialer, [f"unix:{folder}/router-0.sock"], table)
            await stack.enter_async_context(follower)
            await follower.ready.wait()
            tables.append(table)
        yield tables


# -- the other processes -------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _child(part: str, folder: Path, *args: str) -> AsyncIterator[int]:
    """A process of this module that is ready; its pid. Ended with the block."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.routes", part, str(folder), *args,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert child.stdout
        if await child.stdout.readline() != b"ready\n":
            raise SystemExit(f"bench: the {part} of routes did not start")
        yield child.pid
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        await child.wait()


async def _source(folder: Path) -> None:
    """A registry and a router, each on its socket."""
    registry = MemoryRegistry()
    async with (
        Router(registry) as router,
        Server(registry_face.endpoints(registry).handler) as first,
        Server(router_face.endpoints(router).handler) as second,
    ):
        await first.listen(f"unix:{folder}/registry-0.sock")
        await second.listen(f"unix:{folder}/router-0.sock")
        print("ready", flush=True)
        await asyncio.Event().wait()


async def _node(folder: Path, node: str) -> None:
    """A node of a service, registered as every one is."""
    async with Host(
        service=SERVICE,
        endpoints=Endpoints(SERVICE),
        registry_addresses=[f"unix:{folder}/registry-0.sock"],
        run_dir=folder,
        node_id=node,
    ) as host:
        await host.registered(10.0)
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    part, where, *names = sys.argv[1:]
    uvloop.run(_source(Path(where)) if part == "source" else _node(Path(where), *names))
