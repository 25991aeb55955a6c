"""Connections: one per node, made when needed, closed when not."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest

from micro_ray.errors import Cancelled, NotFound, Timeout, Unavailable
from micro_ray.network.pool import GONE
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.network.conftest import Fleet, who


async def test_one_connection_per_node_whoever_comes_first(fleet: Fleet) -> None:
    spots = await fleet.spots("a", "b")
    network = fleet.network()
    assert fleet.dialer.dialed == []
    answers = await asyncio.gather(*(who(network) for _ in range(200)))
    assert set(answers) == {"a", "b"}
    assert sorted(fleet.dialer.dialed) == sorted(spot.address for spot in spots)
    assert [spot.connections for spot in spots] == [1, 1]
    for _ in range(50):
        await who(network)
    assert len(fleet.dialer.dialed) == 2


async def test_a_broken_connection_is_made_anew(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    network = fleet.network()
    for number in range(3):
        assert await who(network) == "a"
        assert len(fleet.dialer.dialed) == number + 1
        spot.cut()
        await eventually(lambda: not network.nodes()[0].connected)


async def test_connections_to_nodes_that_left_are_closed(fleet: Fleet) -> None:
    spots = await fleet.spots("a", "b")
    network = fleet.network()
    await asyncio.gather(*(who(network) for _ in range(20)))
    for spot in spots:
        fleet.drop(spot.id)
        await eventually(lambda s=spot: s.connections == 0, within=2)
    assert network.nodes() == []
    fleet.route("a", spots[0].address)
    assert await who(network) == "a"


async def test_a_node_that_left_finishes_its_calls_first(fleet: Fleet) -> None:
    """And its connection is closed then, though the table changes no more."""
    spot = await fleet.spot("a")
    network = fleet.network()
    spot.hold.clear()
    call = asyncio.create_task(who(network))
    await eventually(lambda: spot.started)
    fleet.drop("a")
    assert not (await asyncio.wait({call}, timeout=2 * GONE))[0]
    spot.hold.set()
    assert await call == "a"
    await eventually(lambda: spot.connections == 0, within=2)


async def test_many_changes_in_a_row_leave_no_connection(fleet: Fleet) -> None:
    """Each change comes while the one before is still being tidied up."""
    spots = await fleet.spots(*(f"n{i}" for i in range(8)))
    network = fleet.network()
    await asyncio.gather(*(who(network) for _ in range(100)))
    for spot in spots:
        fleet.drop(spot.id)
        await asyncio.sleep(GONE / 3)
    await eventually(lambda: not any(spot.connections for spot in spots), within=2)


async def test_a_node_that_leaves_while_it_is_dialed(fleet: Fleet) -> None:
    """The call goes on; its connection is not forgotten."""
    spot = await fleet.spot("a")
    slow = asyncio.Event()
    dial = fleet.dialer.dial

    async def late(address: str, **options: Any) -> object:
        await slow.wait()
        return await dial(address, **options)

    fleet.dialer.dial = late  # type: ignore[method-assign, assignment]
    network = fleet.network()
    call = asyncio.create_task(who(network))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    fleet.drop("a")
    await asyncio.sleep(2 * GONE)  # the time in which it would be forgotten
    slow.set()
    assert await call == "a"
    await eventually(lambda: spot.connections == 0, within=2)


async def test_a_call_that_gives_up_leaves_the_dial_to_the_others(fleet: Fleet) -> None:
    fleet.hole("a")
    network = fleet.network(dial_timeout=0.3)
    first = asyncio.create_task(who(network))
    second = asyncio.create_task(who(network, timeout=0.05))
    third = asyncio.create_task(who(network, timeout=0.2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(Timeout, match="no connection to a before the deadline"):
        await second
    with pytest.raises(Timeout):
        await third
    assert len(fleet.dialer.dialed) == 1
    await eventually(lambda: network.nodes()[0].out)
    gc.collect()  # nobody took the dial's failure: nothing may complain (see the fixture)


# -- addresses -------------------------------------------------------------------------------------


async def test_addresses_in_order_of_preference(fleet: Fleet) -> None:
    a, b = await fleet.spot("a"), await fleet.spot("b", tcp=True)
    fleet.drop("a", "b")
    fleet.route("both", a.address, b.address)
    network = fleet.network()
    assert await who(network) == "a"
    assert fleet.dialer.dialed == [a.address]


@pytest.mark.parametrize(
    "bad", ["unix:/nowhere/at/all.sock", "not an address", "tcp:a..b:80", "tcp:127.0.0.1:1"]
)
async def test_an_address_that_does_not_lead_there_is_passed_over(fleet: Fleet, bad: str) -> None:
    spot = await fleet.spot("a", tcp=True)
    fleet.change("a", addresses=(bad, spot.address))
    assert await who(fleet.network()) == "a"


async def test_sockets_and_loopback_of_another_machine_are_not_tried(fleet: Fleet) -> None:
    a, b = await fleet.spots("a", "b", tcp=True)
    elsewhere = ("unix:/x.sock", "tcp:127.0.0.1:9", "tcp:localhost:9", "tcp:[::1]:9")
    fleet.change("a", addresses=elsewhere, host="there")
    fleet.change("b", host="here")
    network = fleet.network(host="here")
    assert {await who(network) for _ in range(20)} == {"b"}
    assert fleet.dialer.dialed == [b.address]
    # A caller that does not know where it is tries all of them.
    assert await who(fleet.network(), timeout=1) in ("a", "b")
    fleet.drop("b")
    with pytest.raises(Unavailable, match="cannot be reached from here"):
        await who(network, timeout=0.1)
    assert a.started == []


async def test_a_node_that_moves_is_called_where_it_is(fleet: Fleet) -> None:
    """Same id, another address: what is under way at the old one goes on."""
    a, b = await fleet.spots("a", "b")
    fleet.drop("b")
    network = fleet.network()
    a.hold.clear()
    call = asyncio.create_task(who(network))
    await eventually(lambda: a.started)
    fleet.change("a", addresses=(b.address,))
    assert await who(network) == "b"
    a.hold.set()
    assert await call == "a"
    await eventually(lambda: a.connections == 0, within=2)
    assert b.connections == 1


async def test_other_protocols_are_not_called(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    fleet.nobody("h", protocol="http")
    network = fleet.network()
    assert {await who(network) for _ in range(20)} == {"a"}
    fleet.drop("a")
    with pytest.raises(Unavailable, match="speak http, not frames"):
        await who(network, timeout=0.1)
    assert spot.address in fleet.dialer.dialed
    assert len(fleet.dialer.dialed) == 1


# -- closing ---------------------------------------------------------------------------------------


async def test_closing_ends_calls_wherever_they_are(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under way, waiting for a connection, waiting for a node: all end with Cancelled, at once."""
    spot = await fleet.spot("a")
    fleet.hole("hole", service="hole")
    fleet.nobody("gone", service="gone")
    fleet.drop("gone")
    monkeypatch.setattr("micro_ray.network.network.WAIT", 60.0)
    network = fleet.network(dial_timeout=60)
    spot.hold.clear()

    async def ask(service: str) -> bytes:
        return await network.call(service, "Greeter.Who", b"{}")

    calls = [asyncio.create_task(ask(name)) for name in ("greeter", "hole", "gone")]
    await eventually(lambda: spot.started and len(fleet.dialer.dialed) == 2)
    begun = time.monotonic()
    await network.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - begun < PROMPT
    assert [type(result) for result in results] == [Cancelled] * 3
    await eventually(lambda: spot.connections == 0)
    with pytest.raises(Unavailable, match="has been closed"):
        await who(network)
    with pytest.raises(Unavailable, match="has been closed"):
        await network.open("greeter", "Greeter.Count")
    await network.close()
    spot.hold.set()


async def test_closing_ends_connections_that_were_replaced(fleet: Fleet) -> None:
    a, b = await fleet.spots("a", "b")
    fleet.drop("b")
    network = fleet.network()
    a.hold.clear()
    call = asyncio.create_task(who(network))
    await eventually(lambda: a.started)
    fleet.change("a", addresses=(b.address,))
    assert await who(network) == "b"
    await network.close()
    with pytest.raises(Cancelled):
        await call
    await eventually(lambda: a.connections == b.connections == 0)


async def test_cancelling_a_call_cancels_it_at_the_node(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    network = fleet.network()
    spot.hold.clear()
    call = asyncio.create_task(who(network))
    await eventually(lambda: spot.endpoints.in_flight == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await eventually(lambda: spot.endpoints.in_flight == 0)
    assert network.nodes()[0].in_flight == 0
    assert not network.nodes()[0].errors


async def test_cancelling_is_not_mistaken_for_closing(fleet: Fleet) -> None:
    """The caller's own cancellation stays one, also when the pool is being closed."""
    fleet.hole("a")
    network = fleet.network()
    call = asyncio.create_task(who(network))
    await eventually(lambda: fleet.dialer.dialed)
    call.cancel()
    await network.close()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_unknown_names_leave_nothing(fleet: Fleet) -> None:
    network = fleet.network()
    for number in range(1_000):
        with pytest.raises(NotFound):
            await network.call(f"unknown-{number}", "X.Y", b"")
    assert not network._chosen
