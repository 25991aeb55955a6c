"""How long a change of routes takes from the registry to 100 watchers (doors and clients hold the
same :class:`Follower`), over real frames: registry, router and watchers in three processes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from bench.measure import quantile
from bench.stack import ROOT

__all__ = ["run"]

WATCHERS = 100


async def _source(folder: Path) -> None:
    """The child: a registry and a router, each on its socket."""
    from micro_ray.registry.memory import MemoryRegistry
    from micro_ray.router.derive import Router
    from micro_ray.wire import registry as registry_face
    from micro_ray.wire import router as router_face
    from micro_ray.wire.server import Server

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


async def run(*, quick: bool) -> str:
    from micro_ray.registry import Instance, Node
    from micro_ray.router.table import Table
    from micro_ray.wire.client import WireDialer
    from micro_ray.wire.registry import RemoteRegistry
    from micro_ray.wire.router import Follower

    changes = 50 if quick else 500
    with tempfile.TemporaryDirectory(prefix="mb-") as name:
        folder = Path(name)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.routes", name, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout
        if await child.stdout.readline() != b"ready\n":
            raise SystemExit("bench: the route source did not start")
        took: list[float] = []
        try:
            async with contextlib.AsyncExitStack() as stack:
                dialer = WireDialer()
                tables = []
                for _ in range(WATCHERS):
                    table = Table()
                    follower = Follower(dialer, [f"unix:{folder}/router-0.sock"], table)
                    await stack.enter_async_context(follower)
                    await follower.ready.wait()
                    tables.append(table)
                registry = RemoteRegistry(dialer, [f"unix:{folder}/registry-0.sock"])
                stack.push_async_callback(registry.close)
                for number in range(changes):
                    node = Node(id=f"n{number}", addresses=("unix:/tmp/none.sock",))
                    seen = [asyncio.create_task(_sees(t, node.id)) for t in tables]
                    begun = time.perf_counter()
                    await registry.register(Instance(service="probe", node=node))
                    took += [at - begun for at in await asyncio.gather(*seen)]
        finally:
            child.kill()
            await child.wait()
    return "\n".join(
        [
            f"**A route change reaches {WATCHERS} watchers ({changes} changes)**",
            "",
            "| p50 ms | p99 ms | max ms |",
            "|---|---|---|",
            f"| {quantile(took, 0.5) * 1e3:.2f} | {quantile(took, 0.99) * 1e3:.2f} "
            f"| {max(took) * 1e3:.2f} |",
        ]
    )


async def _sees(table: object, node: str) -> float:
    while not any(r.id == node for r in table.lookup("micro", "probe")):  # type: ignore[attr-defined]
        await table.changed()  # type: ignore[attr-defined]
    return time.perf_counter()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_source(Path(sys.argv[1])))
