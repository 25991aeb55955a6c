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
from micro_ray.network import Refused
from micro_ray.wire.dialer import WireDialer
from tests.fixtures.identities import Town
from tests.fixtures.machines import SECOND, Machines, machines, missing
from tests.fixtures.wait import eventually
from tests.journeys.conftest import Driver, Source

WHY_NOT = missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
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
            # Each certificate is renewed several times, also while the cable is out.
            extra["MICRO_CERTS_TTL"] = "60"
            with stack.server(state, **extra) as up:
                yield Two(server=up, machines=both)


async def test_both_serve_and_either_may_be_lost(
    two: Two, source: Source, driver: Driver, tmp_path: Path
) -> None:
    """Source and log of a replica on the other machine, its calls, and what happens when the cable
    is pulled, and when the machine is lost."""
    at = two.server
    (frames,) = [line for line in at.lines if line.startswith("frames ")]
    assert frames.split() == ["frames", "on", two.machines.own, "mutual", "TLS"]
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

    await _rotated(two, driver)
    await _proved(two, tmp_path)
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


async def _proved(two: Two, folder: Path) -> None:
    """Over TCP between the machines nobody is answered who has no certificate of ours; a command
    gets one when it needs it."""
    rows = json.loads(micro(two.server, "network", "routes", "-o", "json"))
    own, other = two.machines.own, two.machines.other
    open_ports = {a for row in rows for a in row["addresses"] if a.startswith(f"tcp:{own}:")}
    open_ports |= {a for row in rows for a in row["addresses"] if a.startswith(f"tcp:{other}:")}
    assert {f"tcp:{own}:7400", f"tcp:{own}:7600", f"tcp:{other}:7501"} <= open_ports
    stranger = await Town(folder / "theirs").secured("store")
    for address in sorted(open_ports):
        for dialer in (WireDialer(), WireDialer(identity=stranger)):
            with pytest.raises(Refused):
                await dialer.dial(address, timeout=10)
    await eventually(lambda: asyncio.to_thread(_by_command, two), within=20)
    listed = json.loads(micro(two.server, "certs", "list", "-o", "json"))
    assert {"api", "store", "where", "client"} <= {row["service"] for row in listed}
    assert "mutual TLS" in micro(two.server, "doctor")


def _by_command(two: Two) -> bool:
    """Whether a command has called the other machine."""
    return json.loads(micro(two.server, "call", "where", "call")) == {"host": SECOND}


async def _rotated(two: Two, driver: Driver) -> None:
    """The authority gets another key, and is killed, while calls go on: none is lost."""
    (first,) = _roots(two)
    calling = asyncio.create_task(_call_on(two))
    try:
        await asyncio.to_thread(micro, two.server, "certs", "renew")
        assert len(_roots(two)) > 1
        driver(
            two.server,
            """
            import os
            os.kill(ray.get(ray.get_actor("certs", namespace="micro").ping.remote())["pid"], 9)
            """,
        )

        def signs() -> bool:
            return first not in [id for id, state in _roots(two).items() if state == "signs"]

        # What the killed one had for itself lives for a minute.
        await eventually(lambda: asyncio.to_thread(signs), within=100, every=0.5)
        await two.hosts()
    finally:
        calling.cancel()
        (ended,) = await asyncio.gather(calling, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError), ended


def _roots(two: Two) -> dict[str, str]:
    """The authority's keys: id -> state."""
    said = json.loads(micro(two.server, "certs", "root", "-o", "json"))
    return {root["id"]: root["state"] for root in said["roots"]}


async def _call_on(two: Two) -> None:
    """Until one fails."""
    while True:
        await two.hosts(8)


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
