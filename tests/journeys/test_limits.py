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


@pytest.fixture
def bounded(server: Server) -> Iterator[Server]:
    yield server
    micro(server, "config", "del", "limits", good=False)
    micro(server, "events", "delete", "bounded", good=False)


def test_the_members_of_the_store_let_in_one_rate(bounded: Server, driver: Driver) -> None:
    """By handles and by frames, past every door; the platform itself goes on."""
    micro(bounded, "limits", "set", "store", "--rate", "0.001", "--burst", "10")
    printed = driver(
        bounded,
        """
        import time
        from micro_ray.errors import TooManyRequests

        stores = [handle(name) for name in ("store", "store-1")]

        def reads(store):
            try:
                ray.get(store.keys.remote(prefix="none"))
            except TooManyRequests as error:
                return error
            return None

        # Once each member has read it, and what it let in before is over.
        end = time.monotonic() + 20
        while any(reads(store) is None for store in stores):
            assert time.monotonic() < end
        error = reads(stores[0])
        assert error.retry_after > 1, error
        print(error.detail)
        """,
    )
    assert printed == (
        "namespace micro may do 0.001 operations a second in the store (10 at once); come again "
        "later\n"
    )
    used = json.loads(micro(bounded, "limits", "usage", "-o", "json"))
    assert [use["admitted"] for use in used if use["kind"] == "store"] == [10]
    said = micro(bounded, "store", "list", good=False)
    assert "may do 0.001 operations a second in the store" in said
    # Config and the runtime are not held up by it, also not what takes the limit away.
    micro(bounded, "run", "examples/helloworld")
    micro(bounded, "kill", "helloworld")
    micro(bounded, "limits", "unset", "store")
    micro(bounded, "store", "list")


async def test_a_quota_of_events(bounded: Server) -> None:
    micro(bounded, "events", "publish", "bounded", "x")
    kept = json.loads(micro(bounded, "events", "usage", "-o", "json"))
    micro(bounded, "config", "set", "limits.events.topics", str(kept["topics"]))

    async def refused() -> bool:
        said = micro(bounded, "events", "fetch", "bounded-new", "g", good=False)
        micro(bounded, "events", "delete", "bounded-new", good=False)
        return f"may keep {kept['topics']} topics in events" in said

    await eventually(refused, within=30)
    micro(bounded, "events", "publish", "bounded", "y")
    assert len(micro(bounded, "events", "read", "bounded").splitlines()) == 2
