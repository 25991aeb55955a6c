"""Nodes that fail are left out for a while, and let in again."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from micro_ray.errors import MicroError, Timeout
from micro_ray.network import Broken
from micro_ray.network.health import BREAKER
from micro_ray.network.network import Network
from tests.fixtures.lines import registry_at
from tests.fixtures.node import node
from tests.fixtures.wait import eventually
from tests.unit.network.conftest import Fleet, who


def out(network: Network) -> list[str]:
    return [status.id for status in network.nodes() if status.out]


async def test_left_out_after_a_failed_dial_twice_as_long_each_time(fleet: Fleet) -> None:
    dead = fleet.nobody("dead")
    await fleet.spot("a")
    network = fleet.network(retry_budget=1)

    async def looks(calls: int = 30) -> int:
        """How often the dead node is dialed in some calls."""
        before = fleet.dialer.dialed.count(dead)
        for _ in range(calls):
            assert await who(network) == "a"
        return fleet.dialer.dialed.count(dead) - before

    assert await looks() == 1
    assert out(network) == ["dead"]
    for pause in (1, 2, 4, 8, 16, 30, 30):
        fleet.shift.by += pause * 0.9
        assert await looks() == 0, f"too early in the pause of {pause} s"
        fleet.shift.by += pause * 0.1 + 0.001
        assert out(network) == []
        assert await looks() == 1, f"not looked at after {pause} s"


async def test_let_in_again_when_it_is_back(fleet: Fleet) -> None:
    b, a = await fleet.spots("b", "a")
    network = fleet.network()
    address = b.address
    await b.close()
    for _ in range(20):
        assert await who(network) == "a"
    assert out(network) == ["b"]
    await b.open(address)
    assert {await who(network) for _ in range(20)} == {"a"}  # its time has not come
    fleet.shift.by += 1.1
    assert {await who(network) for _ in range(20)} == {"a", "b"}
    # What is past is past: the next failure begins with a second again.
    await b.close()
    for _ in range(20):
        with suppress(Broken):
            await who(network)
    fleet.shift.by += 1.1
    assert out(network) == []
    assert a.finished


async def test_many_that_waited_for_one_dial_count_as_one_failure(fleet: Fleet) -> None:
    """Or a moment's failure would put a node out for half a minute."""
    fleet.nobody("dead")
    await fleet.spot("a")
    network = fleet.network()
    await asyncio.gather(*(who(network) for _ in range(200)))
    assert out(network) == ["dead"]
    fleet.shift.by += 1.1
    assert out(network) == []


async def test_one_broken_connection_does_not_put_a_living_node_out(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    await fleet.spot("b", weight=0)
    network = fleet.network()
    spot.hold.clear()
    calls = [asyncio.create_task(who(network)) for _ in range(50)]
    await eventually(lambda: len(spot.started) == 50)
    spot.cut()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, Broken) for result in results)
    spot.hold.set()
    assert out(network) == []
    assert await who(network) == "a"
    (status, _) = network.nodes()
    assert (status.calls, status.errors) == (51, 50)


async def test_the_breaker_opens_on_refusals(fleet: Fleet) -> None:
    a, b = await fleet.spots("a", "b")
    network = fleet.network(retry_budget=1)
    a.endpoints._max = 0
    for _ in range(100):
        assert await who(network) == "b"
    assert out(network) == ["a"]
    (status, _) = network.nodes()
    assert status.errors == BREAKER
    fleet.shift.by += 1.1
    for _ in range(100):
        assert await who(network) == "b"
    assert network.nodes()[0].errors == BREAKER + 1  # one look was enough
    fleet.shift.by += 2.1
    a.endpoints._max = 100
    assert {await who(network) for _ in range(30)} == {"a", "b"}
    assert out(network) == []
    assert b.finished


async def test_a_node_that_takes_calls_and_never_answers_is_left_out(fleet: Fleet) -> None:
    a, _ = await fleet.spots("a", "b")
    network = fleet.network()
    await asyncio.gather(*(who(network) for _ in range(10)))
    before = len(a.started)
    a.hold.clear()
    while out(network) != ["a"]:
        with suppress(Timeout):
            await who(network, timeout=0.3)
    assert len(a.started) == before + BREAKER
    for _ in range(20):
        assert await who(network) == "b"
    a.hold.set()


async def test_all_out_is_not_none(fleet: Fleet) -> None:
    """Better one of them than nobody: they are tried all the same, and come back by it."""
    a, b = await fleet.spots("a", "b")
    network = fleet.network()
    addresses = [a.address, b.address]
    await a.close()
    await b.close()
    with pytest.raises(MicroError):
        await who(network, timeout=0.1)
    assert out(network) == ["a", "b"]
    await a.open(addresses[0])
    await b.open(addresses[1])
    assert await who(network) in ("a", "b")


async def test_an_only_node_is_never_left_out(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    network = fleet.network()
    assert await who(network) == "a"
    spot.hold.clear()
    for _ in range(BREAKER):
        with pytest.raises(Timeout):
            await who(network, timeout=0.01)
    spot.hold.set()
    assert out(network) == ["a"]
    assert await who(network) == "a"


async def test_a_node_that_hangs_in_the_handshake_draws_few_calls(fleet: Fleet) -> None:
    """Those that wait for its connection count as its load: it does not look idle."""
    fleet.hole("hole")
    spot = await fleet.spot("a")
    spot.delay = 0.001
    network = fleet.network(dial_timeout=1.0)

    async def work() -> None:
        while len(spot.finished) < 300:
            assert await who(network) == "a"

    workers = [asyncio.create_task(work()) for _ in range(10)]
    await eventually(lambda: len(spot.finished) >= 300)
    (_, stuck) = network.nodes()
    # No more than are at the other one: 5 of 10, and not all of them.
    assert 1 <= stuck.in_flight <= 6
    await asyncio.gather(*workers)


async def test_a_stopped_process_is_left_out(fleet: Fleet) -> None:
    """Its sockets are open and its table entry is good: only the calls tell."""
    async with (
        registry_at(fleet.folder / "registry.sock"),
        node(fleet.folder, "good"),
        node(fleet.folder, "stopped") as child,
    ):
        for id in ("good", "stopped"):
            fleet.route(id, f"unix:{fleet.folder}/{id}.sock", service="node")
        network = fleet.network()

        async def ask(timeout: float) -> str:
            body = await network.call("node", "Node.Who", b"{}", timeout=timeout)
            return body.decode().strip('"')

        assert {await ask(5) for _ in range(20)} == {"good", "stopped"}
        child.stop()
        failed = 0
        for _ in range(100):
            try:
                assert await ask(0.2) == "good"
            except Timeout:
                failed += 1
        assert BREAKER <= failed <= BREAKER + 2
        child.go_on()
        await network.close()
