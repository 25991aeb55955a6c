"""The platform's processes: who they are, whether all are well, and what each of them holds."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil

from bench.stack import Server
from micro_ray import AsyncClient
from micro_ray.settings import load
from tests.chaos.growth import Held, Seen
from tests.fixtures.wait import eventually

__all__ = ["ALONE", "TITLES", "VICTIMS", "Platform", "processes"]

#: Process titles that may be killed -> how many there are when all is well, of the service
#: replicas at least.
VICTIMS: Mapping[str, int] = {
    "ray::CertsActor": 1,
    "ray::RegistryActor": 1,
    "ray::RouterActor": 2,
    "ray::StoreActor": 2,
    "ray::BrokerActor": 1,
    "ray::EventsActor": 2,
    "ray::ConfigActor": 2,
    "ray::AuthActor": 1,
    "ray::AuthCacheActor": 1,
    "ray::LimitsActor": 1,
    "ray::NetworkActor": 1,
    "ray::RuntimeActor": 1,
    "ray::Replica": 3,
    "ray::ServeReplica:api": 2,
    "ray::ServeReplica:proxy": 2,
}
#: The only ones of their kind.
ALONE = frozenset(title for title, count in VICTIMS.items() if count == 1)
#: What is never killed here and must not grow either: the server, and the parts of Ray under it.
ANCHORS = ("micro server", "gcs_server", "raylet", "ray::ServeController")
TITLES = (*VICTIMS, *ANCHORS)

DOOR, PROXY = "ray::ServeReplica:api", "ray::ServeReplica:proxy"
REPLICA = "ray::Replica"
#: A worker that Ray keeps for the next actor: nobody's member, gone when nobody needs it.
IDLE = "ray::IDLE"
#: What reads the logs of Ray's workers.
LOGS = "log_monitor.py"


def processes(server: Server) -> dict[str, list[psutil.Process]]:
    """The processes that may be killed, by title."""
    found: dict[str, list[psutil.Process]] = {title: [] for title in VICTIMS}
    for process in _tree(server):
        title = _title(process)
        if title in found:
            found[title].append(process)
    return found


def _tree(server: Server) -> list[psutil.Process]:
    """Every process of the platform that lives."""
    top = psutil.Process(server.pid)
    return [top, *top.children(recursive=True)]


def _title(process: psutil.Process) -> str:
    """What a process is; nothing for one that has ended."""
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
    line = " ".join(words)
    for title in VICTIMS:
        if line.startswith(title):
            return title
    if line.startswith("ray::"):
        return line.split(" ")[0].partition(".")[0]
    if words[-1:] == ["server"]:
        return "micro server"
    scripts = [word for word in words[1:] if word.endswith(".py")]
    return Path(scripts[0] if scripts else words[0]).name if words else ""


class Platform:
    """A platform with services on it, and a client of it. ``services`` -> how many replicas."""

    def __init__(self, server: Server, client: AsyncClient, services: Mapping[str, int]) -> None:
        self.server = server
        self._client = client
        self._services = services
        settings = load(server.environ)
        self._run = settings.run
        pools = settings.pools
        self._pools = [name for name in pools.__slots__ if getattr(pools, name)]
        replicas = sum(services.values())
        self._wanted = {**VICTIMS, REPLICA: replicas}

    def complete(self) -> bool:
        """Whether every process is there, and none too many."""
        return {t: len(found) for t, found in processes(self.server).items()} == self._wanted

    async def healthy(self) -> bool:
        """Whether every process is there and each of them answers a call of its own."""
        if not await asyncio.to_thread(self.complete):
            return False
        tasks = await self.tasks()
        return all(
            process.pid in tasks for found in processes(self.server).values() for process in found
        )

    async def tasks(self) -> dict[int, int]:
        """Tasks on the loop of each process that has one of ours, by pid: actors and replicas are
        asked by their own node, doors until each has been met. Those of the gRPC door answer, and
        do not say how many they have."""
        rows = await asyncio.gather(
            *(
                self._client.call(service, "Debug.Stats", {}, node=route.id, timeout=5.0)
                for service in (*self._pools, *self._services)
                for route in self._client.table.lookup("micro", service)
            )
        )
        found = {row["pid"]: row["tasks"] for row in rows}
        # The kernel chooses the door of each connection.
        doors: dict[int, int] = {}
        for _ in range(60):
            if len(doors) == VICTIMS[DOOR]:
                break
            seen = await asyncio.to_thread(_scrape, self.server.port)
            doors[seen["micro_api_pid"]] = seen["micro_api_tasks"]
        return found | doors | dict.fromkeys(await self._proxies(), 0)

    async def _proxies(self) -> set[int]:
        """The replicas of the gRPC door that have answered."""
        port, met = self.server.proxy_port, set[int]()
        having = await asyncio.to_thread(lambda: processes(self.server)[PROXY])
        for _ in range(60):
            if len(met) == VICTIMS[PROXY]:
                break
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
                await check(b"", timeout=5.0)
                for process in having:
                    if await asyncio.to_thread(_connected, process, port):
                        met.add(process.pid)
        return met

    def seen(self) -> list[Seen]:
        """Every process but those that wait to become something."""
        found = []
        for process in _tree(self.server):
            title = _title(process)
            if title not in ("", IDLE):
                found.append(Seen(pid=process.pid, title=title, group=self._group(process, title)))
        return found

    def _group(self, process: psutil.Process, title: str) -> str:
        if title in (DOOR, PROXY) or title not in VICTIMS:
            return title
        # Each listens on a socket of its name: store-1.sock, helloworld-0123456789ab.sock.
        listens = {
            Path(c.laddr).stem
            for c in process.net_connections("unix")
            if c.laddr and Path(c.laddr).parent == self._run
        }
        (name,) = listens
        return name.rpartition("-")[0] if title == REPLICA else name

    def held(self, tasks: Mapping[int, int]) -> dict[int, Held]:
        """What each process holds, by pid."""
        found = {}
        for process in _tree(self.server):
            title = _title(process)
            if title in ("", IDLE):
                continue
            # Ray's own limit of the files that it keeps open there is 200, of the dead ones too.
            aside = len(process.open_files()) if title == LOGS else 0
            found[process.pid] = Held(
                descriptors=process.num_fds() - aside,
                memory=process.memory_full_info().uss,
                tasks=tasks.get(process.pid, 0),
            )
        return found

    async def look(self) -> tuple[Sequence[Seen], dict[int, Held]]:
        """All processes and what they hold, of a moment at which nothing was changing: two looks
        half a second apart saw the same processes, descriptors and tasks."""
        last: list[dict[int, tuple[int, int]]] = [{}]
        looked: list[tuple[Sequence[Seen], dict[int, Held]]] = []

        async def still() -> bool:
            held = await asyncio.to_thread(self.held, await self.tasks())
            looked[:] = [(await asyncio.to_thread(self.seen), held)]
            now = {pid: (one.descriptors, one.tasks) for pid, one in held.items()}
            same, last[0] = now == last[0], now
            return same

        await eventually(still, within=30, every=0.5)
        return looked[0]


def _connected(process: psutil.Process, port: int) -> bool:
    """Whether somebody has a connection to a process that listens on a port."""
    return any(
        c.status == "ESTABLISHED" and c.laddr.port == port for c in process.net_connections("tcp")
    )


def _scrape(port: int) -> dict[str, int]:
    """The door's own figures without labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    rows = [line.split(" ") for line in lines if not line.startswith("#") and "{" not in line]
    return {name: int(float(value)) for name, value in rows}
