"""A Ray of two machines: pools and replicas on both, frames over TCP between them."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bench import stack
from bench.stack import micro
from tests.fixtures.machines import SECOND, Machines, machines, missing
from tests.fixtures.wait import eventually
from tests.journeys.conftest import Driver, Source

WHY_NOT = missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "a second machine is there"),
]

FIRST = socket.gethostname()
WHERE = """
    import socket
    from micro_ray import Service

    service = Service("where")
    print("imported on", socket.gethostname(), flush=True)

    @service.endpoint
    async def call(word: str = "") -> dict[str, str]:
        if word:
            print(word, "on", socket.gethostname(), flush=True)
        return {"host": socket.gethostname()}

    @service.endpoint
    async def kept() -> dict[str, str]:
        await service.store.write("from", socket.gethostname().encode())
        record = await service.store.read("from")
        return {"host": record.value.decode()}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Two:
    server: stack.Server
    machines: Machines

    async def call(self, path: str = "where/call", **body: str) -> str:
        """The machine that has answered."""
        async with httpx.AsyncClient(timeout=20) as client:
            answer = await client.post(f"http://127.0.0.1:{self.server.port}/{path}", json=body)
        answer.raise_for_status()
        return str(answer.json()["host"])

    async def hosts(self, count: int = 24, **body: str) -> set[str]:
        """The machines that answer some calls."""
        return set(await asyncio.gather(*(self.call(**body) for _ in range(count))))

    def replicas(self) -> dict[str, str]:
        """Of the service: id -> machine."""
        (status,) = json.loads(micro(self.server, "status", "where", "-o", "json"))
        return {r["id"]: r["host"] for r in status["replicas"] if r["state"] == "running"}


@pytest.fixture
def two() -> Iterator[Two]:
    with tempfile.TemporaryDirectory(prefix="mm-") as folder:
        state = Path(folder)
        with machines(state) as both:
            extra = {**both.environ, "MICRO_RAY_ADDRESS": both.address, "MICRO_WIRE_KEEPALIVE": "1"}
            with stack.server(state, **extra) as up:
                yield Two(server=up, machines=both)


async def test_both_serve_and_either_may_be_lost(two: Two, source: Source, driver: Driver) -> None:
    """Source and log of a replica on the other machine, its calls, and what happens when the cable
    is pulled, and when the machine is lost."""
    at = two.server
    assert any(line.startswith(f"frames    on  {two.machines.own}") for line in at.lines)
    hosts = _hosts(two, driver)
    assert hosts["router-1"] == [SECOND, f"tcp:{two.machines.other}:7501"]
    assert hosts["registry"] == [FIRST, f"tcp:{two.machines.own}:7400"]
    # SQLite's files are on the server's machine only.
    assert hosts["store"][0] == hosts["store-1"][0] == FIRST

    await asyncio.to_thread(micro, at, "run", "--replicas", "6", source("where", WHERE))
    assert set(two.replicas().values()) == {FIRST, SECOND}
    assert await two.hosts() == {FIRST, SECOND}
    kept = {await two.call("where/kept") for _ in range(24)}
    assert SECOND in kept  # who is there calls what is here
    log = micro(at, "logs", "-n", "1000", "where")
    assert log.count(f"imported on {SECOND}") == list(two.replicas().values()).count(SECOND)

    await _adopted(two, driver)
    await _cable(two)
    await _lost(two)
    await eventually(lambda: _hosts(two, driver)["router-1"][0] == FIRST, within=30, every=1)


def _hosts(two: Two, driver: Driver) -> dict[str, list[str]]:
    """Where some platform actors are: name -> machine, address for others."""
    pings = driver(
        two.server,
        """
        for name in ("registry", "store", "store-1", "router", "router-1"):
            ping = ray.get(ray.get_actor(name, namespace="micro").ping.remote())
            print(name, ping["host"], *(a for a in ping["addresses"] if a.startswith("tcp:")))
        """,
    )
    return {row.split()[0]: row.split()[1:] for row in pings.splitlines()}


async def _adopted(two: Two, driver: Driver) -> None:
    """A runtime that was killed takes up what it left on both machines, and their logs."""
    before = two.replicas()
    driver(
        two.server,
        """
        import os
        os.kill(ray.get(ray.get_actor("runtime", namespace="micro").ping.remote())["pid"], 9)
        """,
    )
    await eventually(lambda: two.replicas() == before, within=30, every=0.5)
    assert await two.hosts(word="adopted") == {FIRST, SECOND}

    def logged() -> bool:
        log = micro(two.server, "logs", "-n", "1000", "where")
        assert log.count(f"imported on {SECOND}") == list(before.values()).count(SECOND)
        return log.count("adopted on") == 24

    await eventually(lambda: asyncio.to_thread(logged), within=10, every=0.2)


async def _cable(two: Two) -> None:
    two.machines.pull()
    try:
        await eventually(lambda: _only(two, {FIRST}), within=30)
    finally:
        two.machines.plug()
    await eventually(lambda: _only(two, {FIRST, SECOND}), within=30)


async def _lost(two: Two) -> None:
    """Its replicas are made anew on the machine that is left, the routers too."""
    two.machines.lose()

    async def all_here() -> bool:
        replicas = await asyncio.to_thread(two.replicas)
        return list(replicas.values()) == [FIRST] * 6 and await two.hosts() == {FIRST}

    await eventually(all_here, within=90, every=0.5)


async def _only(two: Two, hosts: set[str]) -> bool:
    return await two.hosts() == hosts
