"""Twice what a service can serve, come what may: what its callers see meanwhile, and afterwards."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

from bench.measure import quantile
from micro_ray import Service
from micro_ray.sdk.testing import platform
from tests.fixtures.doors import Seen, ask_over_and_over, child, get

__all__ = ["Outcome", "overload"]

#: Calls that the service works on at once, and seconds that it needs for each.
AT_ONCE, WORK = 8, 0.02
#: Connections over which requests come.
LINES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``saturation``: calls per second at most; ``offered`` and ``served`` per second under the
    load; seconds of the slowest hundredth of those served and of those refused; ``calm`` the same
    without load; ``recovery``: seconds after the load until a second of calls was as before."""

    saturation: float
    offered: float
    served: float
    codes: dict[int, int]
    p99_calm: float
    p99_served: float
    p99_refused: float
    recovery: float

    def __str__(self) -> str:
        return (
            f"saturation {self.saturation:.0f}/s, offered {self.offered:.0f}/s, served "
            f"{self.served:.0f}/s, {self.codes}; p99 calm {self.p99_calm * 1e3:.1f} ms, served "
            f"{self.p99_served * 1e3:.1f} ms, refused {self.p99_refused * 1e3:.1f} ms; "
            f"recovered in {self.recovery:.2f} s"
        )


def _worker() -> Service:
    service = Service("worker")
    busy = asyncio.Semaphore(AT_ONCE)

    @service.endpoint
    async def call() -> str:
        async with busy:  # the others wait here, as they would for a database
            await asyncio.sleep(WORK)
        return "done"

    return service


async def overload(seconds: float, *, times: float = 2.0) -> Outcome:
    """Two doors before one service whose concurrency is limited to what it can do at once."""
    async with platform() as here, AsyncExitStack() as stack:
        await here.serve(_worker())
        run = here.bootstrap.run
        ports = [
            (await stack.enter_async_context(child("door", run, doors=2))).port for _ in range(2)
        ]
        full = Seen()
        await asyncio.gather(*(_closed(port, AT_ONCE, full) for port in ports))
        saturation = full.codes[200] / 2.0
        await here.limits.set("service", "worker", concurrency=2 * AT_ONCE)
        calm = await _calm(ports[0])
        seen, offered = await _offer(ports, times * saturation, seconds)
        begun = time.monotonic()
        while (await _calm(ports[0])) > 2 * calm + WORK and time.monotonic() < begun + 60:
            pass
        return Outcome(
            saturation=saturation,
            offered=offered,
            served=seen.codes.get(200, 0) / seconds,
            codes=seen.codes,
            p99_calm=calm,
            p99_served=quantile(seen.served, 0.99),
            p99_refused=quantile(seen.refused, 0.99),
            recovery=max(0.0, time.monotonic() - begun - 1.0),
        )


async def _closed(port: int, clients: int, seen: Seen) -> None:
    path = "/worker/call"
    await asyncio.gather(*(ask_over_and_over(port, path, 2.0, seen=seen) for _ in range(clients)))


async def _calm(port: int) -> float:
    """The slowest hundredth of a second of calls, one at a time; for ever if one is refused."""
    seen = await ask_over_and_over(port, "/worker/call", 1.0)
    return quantile(seen.served, 0.99) if set(seen.codes) == {200} else float("inf")


async def _offer(ports: list[int], rate: float, seconds: float) -> tuple[Seen, float]:
    """Requests at their times, whatever became of those before; a request that finds no line free
    waits, and its seconds count from its time."""
    seen, lines = Seen(), asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()
    for i in range(LINES):
        lines.put_nowait(await asyncio.open_connection("127.0.0.1", ports[i % len(ports)]))

    async def one(at: float) -> None:
        line = await lines.get()
        code, headers, body = await get(*line, "/worker/call")
        seen.count(code, time.monotonic() - at, headers, body)
        lines.put_nowait(line)

    begun, sent = time.monotonic(), 0
    async with asyncio.TaskGroup() as group:
        while (now := time.monotonic()) < begun + seconds:
            while begun + sent / rate <= now:
                group.create_task(one(begun + sent / rate))
                sent += 1
            await asyncio.sleep(0.002)
    while not lines.empty():
        lines.get_nowait()[1].close()
    return seen, sent / seconds
