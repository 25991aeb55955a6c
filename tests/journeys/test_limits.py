"""Limits on a real platform: set by handle, kept by both replicas of the door together, also while
the limiter is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from bench.stack import Server, micro
from tests.fixtures.doors import Seen, ask_over_and_over
from tests.fixtures.wait import eventually
from tests.journeys.conftest import Driver

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

PATH = "/helloworld/call"


@pytest.fixture
def limited(server: Server) -> Iterator[Server]:
    micro(server, "run", "examples/helloworld")
    yield server
    micro(server, "limits", "unset", "service", "helloworld", good=False)
    micro(server, "kill", "helloworld")


async def clients(port: int, seconds: float) -> Seen:
    """Twenty connections: the kernel spreads them over the replicas."""
    seen = Seen()
    await asyncio.gather(*(ask_over_and_over(port, PATH, seconds, seen=seen) for _ in range(20)))
    return seen


async def test_the_doors_keep_one_limit(limited: Server, driver: Driver) -> None:
    rate, burst = 100, 50
    pid = driver(
        limited,
        f"""
        limits = handle("limits")
        rule = ray.get(limits.set.remote("service", "helloworld", rate={rate}, burst={burst}))
        assert rule.limit.rate == {rate}
        assert ray.get(limits.list.remote()).rules == (rule,)
        print(ray.get(limits.ping.remote())["pid"])
        """,
    )
    # With the first burst gone, what is counted is what the rate gives.
    assert 429 in (await clients(limited.port, 1.0)).codes
    begun = time.monotonic()
    seen = await clients(limited.port, 3.0)
    took = time.monotonic() - begun
    assert set(seen.codes) == {200, 429}
    assert seen.codes[200] <= rate * took + burst
    assert seen.codes[200] >= 0.9 * rate * 3.0
    (use,) = json.loads(micro(limited, "limits", "usage", "-o", "json"))
    assert (use["kind"], use["name"], use["doors"]) == ("service", "helloworld", 2)
    os.kill(int(pid), signal.SIGKILL)
    seen = await clients(limited.port, 2.0)
    assert set(seen.codes) == {200, 429}
    micro(limited, "limits", "unset", "service", "helloworld")
    await eventually(lambda: _free(limited.port), within=15)


async def _free(port: int) -> bool:
    return set((await clients(port, 0.2)).codes) == {200}
