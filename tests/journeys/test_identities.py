"""A platform on one machine whose TCP is mutual TLS too: identities of members and replicas of both
drivers, and an authority that is killed while calls go on."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from bench import stack
from bench.stack import micro
from micro_ray.network import Refused
from micro_ray.wire.dialer import WireDialer
from tests.fixtures.wait import eventually
from tests.journeys.conftest import Driver, Source

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

PEERS = """
    from micro_ray import Context, Service

    service = Service("NAME")

    @service.endpoint
    async def call(context: Context) -> dict[str, str]:
        return {"peer": context.peer}

    if __name__ == "__main__":
        service.run()
"""
KILL = """
    import os
    os.kill(ray.get(ray.get_actor("certs", namespace="micro").ping.remote())["pid"], 9)
"""


async def test_tls_always(source: Source, driver: Driver) -> None:
    with stack.server(MICRO_NETWORK_TLS="always", MICRO_CERTS_TTL="60") as up:
        for kind in ("ray", "process"):
            folder = source(f"peers-{kind}", PEERS.replace("NAME", f"peers-{kind}"))
            await asyncio.to_thread(micro, up, "run", "--driver", kind, folder)
        listed = json.loads(micro(up, "certs", "list", "-o", "json"))
        assert {
            "api", "auth", "authcache", "broker", "certs", "config", "events", "limits", "network",
            "peers-process", "peers-ray", "proxy", "registry", "router", "runtime", "store",
        } == {row["service"] for row in listed}  # fmt: skip
        assert "mutual TLS (network.tls always)" in micro(up, "doctor")
        rows = json.loads(micro(up, "network", "routes", "-o", "json"))
        ports = [a for row in rows for a in row["addresses"] if a.startswith("tcp:")]
        doors = sum(row["service"] in ("api", "proxy") for row in listed)
        assert len(ports) >= len(listed) - doors  # they do not listen to frames
        for address in ports:
            with pytest.raises(Refused):
                await WireDialer().dial(address, timeout=10)

        calling = asyncio.create_task(_call_on(up))
        try:
            for _ in range(3):
                await asyncio.to_thread(driver, up, KILL)
                await eventually(lambda: asyncio.to_thread(_back, up), within=30, every=0.2)
        finally:
            calling.cancel()
            (ended,) = await asyncio.gather(calling, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


def _back(up: stack.Server) -> bool:
    return "peers-ray" in micro(up, "certs", "list")


async def _call_on(up: stack.Server) -> None:
    """Until a call fails."""
    async with httpx.AsyncClient(timeout=20) as client:
        while True:
            for name in ("peers-ray", "peers-process"):
                answer = await client.post(f"http://127.0.0.1:{up.port}/{name}/call", json={})
                answer.raise_for_status()
                assert answer.json() == {"peer": "unix"}
