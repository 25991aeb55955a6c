"""The platform's processes, and what each of them holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from bench.stack import Server, micro

__all__ = ["VICTIMS", "Held", "complete", "grown", "healthy", "held", "processes"]

#: Process titles that may be killed -> how many there are when all is well.
VICTIMS: Mapping[str, int] = {
    "ray::RegistryActor": 1,
    "ray::RouterActor": 2,
    "ray::StoreActor": 2,
    "ray::BrokerActor": 1,
    "ray::EventsActor": 2,
    "ray::ConfigActor": 2,
    "ray::NetworkActor": 1,
    "ray::RuntimeActor": 1,
    "ray::Replica": 3,
    "ray::ServeReplica:api": 2,
}

#: How much more a process may hold than it did: sockets of the load's connections, tasks of calls
#: that have not quite ended, memory that the allocator keeps.
MORE_SOCKETS, MORE_TASKS, MORE_MEMORY = 48, 24, 64 * 2**20


@dataclass(frozen=True, slots=True)
class Held:
    """Of one process; ``tasks`` is 0 where there is nobody to ask (the doors)."""

    sockets: int
    memory: int
    tasks: int = 0


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
    """Whether all are there."""
    return {title: len(found) for title, found in processes(server).items()} == VICTIMS


async def healthy(server: Server) -> bool:
    """Whether all are there and can be called."""
    if not complete(server):
        return False
    rows = await asyncio.to_thread(micro, server, "services")
    return all(name in rows for name in ("helloworld", "store", "runtime"))


def held(server: Server) -> dict[int, Held]:
    """What each process holds, by pid."""
    tasks: dict[int, int] = {}
    for service in (
        "registry", "router", "store", "broker", "events", "config", "network", "runtime",
        "helloworld",
    ):  # fmt: skip
        for row in json.loads(micro(server, "stats", service, "-o", "json")):
            tasks[row["pid"]] = row["tasks"]
    return {
        process.pid: Held(process.num_fds(), process.memory_info().rss, tasks.get(process.pid, 0))
        for found in processes(server).values()
        for process in found
    }


def grown(before: Mapping[int, Held], now: Mapping[int, Held]) -> list[str]:
    """The processes of ``before`` that hold more now."""
    rows = []
    for pid in before.keys() & now.keys():
        old, new = before[pid], now[pid]
        if (
            new.sockets > old.sockets + MORE_SOCKETS
            or new.memory > old.memory + MORE_MEMORY
            or new.tasks > old.tasks + MORE_TASKS
        ):
            rows.append(f"{pid}: {old} -> {new}")
    return rows
