"""``kill -9`` of platform actors and service replicas under steady load.

The short form kills six times; ``MICRO_CHAOS_KILLS=30`` (``scripts/chaos``) is the long form.
"""

from __future__ import annotations

import asyncio
import os
import random

import psutil
import pytest

from bench.stack import Server, micro
from tests.chaos.load import Load
from tests.fixtures.wait import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("MICRO_CHAOS_KILLS", "6"))
RATE = 500.0

#: Process titles that may be killed -> how many there are when all is well.
VICTIMS = {
    "ray::RegistryActor": 1,
    "ray::RouterActor": 2,
    "ray::StoreActor": 2,
    "ray::NetworkActor": 1,
    "ray::RuntimeActor": 1,
    "ray::Replica": 3,
    "ray::ServeReplica:api": 2,
}


def processes(server: Server) -> dict[str, list[psutil.Process]]:
    """The platform's processes by title."""
    found: dict[str, list[psutil.Process]] = {title: [] for title in VICTIMS}
    for process in psutil.Process(server.pid).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        for title in VICTIMS:
            if line.startswith(title):
                found[title].append(process)
    return found


def complete(server: Server) -> bool:
    return {title: len(found) for title, found in processes(server).items()} == VICTIMS


async def healthy(server: Server) -> bool:
    if not complete(server):
        return False
    rows = await asyncio.to_thread(micro, server, "services")
    return all(name in rows for name in ("helloworld", "store", "runtime"))


async def test_random_kills_under_load(server: Server) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    await asyncio.to_thread(micro, server, "run", "--replicas", "3", "examples/helloworld")
    await eventually(lambda: healthy(server), within=60)
    before = {
        process.pid: (process.num_fds(), process.memory_info().rss)
        for found in processes(server).values()
        for process in found
    }
    async with Load(server.port, rate=RATE) as outcome:
        await eventually(lambda: outcome.good > RATE, within=30)
        for _ in range(KILLS):
            title = choose.choice(list(VICTIMS))
            victim = choose.choice(processes(server)[title])
            print(f"kill -9 {title} {victim.pid}")
            victim.kill()
            await asyncio.sleep(1.0)
            await eventually(lambda: healthy(server), within=60)
        target = outcome.good + RATE
        await eventually(lambda: outcome.good > target, within=30)
    print(f"{outcome.sent} sent, {outcome.success:.5f} good, slowest {outcome.slowest:.3f} s")
    print(dict(outcome.failures))
    assert not outcome.wrong, outcome.wrong[:3]
    assert outcome.success >= 0.999, dict(outcome.failures)
    await eventually(lambda: not grown(server, before), within=30)


def grown(server: Server, before: dict[int, tuple[int, int]]) -> list[str]:
    """Processes that were there before and hold more than they did: sockets by more than the
    connections of the load, memory by more than 64 MiB."""
    rows = []
    for title, found in processes(server).items():
        for process in found:
            if process.pid not in before:
                continue
            fds, rss = before[process.pid]
            if process.num_fds() > fds + 48 or process.memory_info().rss > rss + 64 * 2**20:
                rows.append(f"{title} {process.pid}")
    return rows
