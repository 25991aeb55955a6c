"""Trying again: only where it is safe, within one deadline and the budget."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from micro_ray.errors import (
    BadGateway,
    BadRequest,
    Conflict,
    MicroError,
    Timeout,
    TooManyRequests,
    Unavailable,
)
from micro_ray.network import Broken, Refused, Silent
from micro_ray.network.health import Budget
from micro_ray.network.network import ATTEMPTS, WAIT
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.network.conftest import Fleet, Spot, who


def full(spot: Spot) -> None:
    """Make a node refuse every call, as one that serves as many as it can."""
    spot.endpoints._max = 0


def started(*spots: Spot) -> int:
    return sum(len(spot.started) for spot in spots)


async def test_a_node_that_is_not_there_costs_nothing_but_a_look(fleet: Fleet) -> None:
    for number in range(3):
        fleet.nobody(f"dead-{number}")
    spot = await fleet.spot("a")
    network = fleet.network()
    for number in range(20):
        assert await who(network, str(number)) == "a"
    assert spot.finished == [str(number) for number in range(20)]


async def test_a_refused_call_goes_elsewhere_and_is_executed_once(fleet: Fleet) -> None:
    a, b = await fleet.spots("a", "b")
    full(a)
    network = fleet.network()
    for number in range(30):
        assert await who(network, str(number)) == "b"
    assert (started(a), started(b)) == (0, 30)


async def test_an_address_that_another_service_has_now(fleet: Fleet) -> None:
    """A port that was free and was taken: the call is not answered by a stranger."""
    stranger = await fleet.spot("x", service="other")
    stranger.endpoints.service = "other"
    fleet.route("stale", stranger.address)
    spot = await fleet.spot("a")
    network = fleet.network()
    for _ in range(20):
        assert await who(network) == "a"
    assert not stranger.started
    assert len(spot.finished) == 20


async def test_a_draining_node_loses_no_call(fleet: Fleet) -> None:
    a, b = await fleet.spots("a", "b")
    network = fleet.network()
    await asyncio.gather(*(who(network) for _ in range(10)))
    a.hold.clear()
    calls = [asyncio.create_task(who(network)) for _ in range(10)]
    await eventually(lambda: len(a.started) + len(b.started) == 20)
    assert a.server is not None
    drain = asyncio.create_task(a.server.drain(10))
    more = await asyncio.gather(*(who(network) for _ in range(50)))
    assert set(more) == {"b"}
    a.hold.set()
    assert set(await asyncio.gather(*calls)) == {"a", "b"}
    assert await drain


async def test_what_broke_under_way_is_not_repeated(fleet: Fleet) -> None:
    a, b = await fleet.spots("a", "b")
    a.hold.clear()
    b.hold.clear()
    network = fleet.network()
    calls = [asyncio.create_task(who(network)) for _ in range(10)]
    await eventually(lambda: started(a, b) == 10)
    on_a = len(a.started)
    a.cut()
    b.hold.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    broken = [result for result in results if isinstance(result, Exception)]
    assert len(broken) == on_a
    assert all(type(error) is Broken and error.code == 502 for error in broken)
    assert started(a, b) == 10


async def test_an_idempotent_one_is(fleet: Fleet) -> None:
    a, b = await fleet.spots("a", "b")
    a.hold.clear()
    b.hold.clear()
    network = fleet.network()
    calls = [asyncio.create_task(who(network, idempotent=True)) for _ in range(10)]
    await eventually(lambda: started(a, b) == 10)
    on_a = len(a.started)
    await a.close()
    b.hold.set()
    assert await asyncio.gather(*calls) == ["b"] * 10
    assert len(b.started) == 10
    assert on_a


@pytest.mark.parametrize("code", [502, 503])
async def test_an_answer_of_the_services_own_is_an_answer(fleet: Fleet, code: int) -> None:
    """It has been executed, whatever its code: it is not made again, and the node is well."""
    spots = await fleet.spots("a", "b")
    for spot in spots:
        spot.code = code
    network = fleet.network()
    for _ in range(20):
        with pytest.raises((Unavailable, BadGateway)) as caught:
            await who(network)
        assert caught.value.code == code
        assert not isinstance(caught.value, Refused | Broken)
        assert caught.value.id == "greeter"
    assert started(*spots) == 20
    assert not any(status.out or status.errors for status in network.nodes())


@pytest.mark.parametrize("code", [502, 503])
async def test_an_idempotent_call_asks_another_node_that_may_be_well(
    fleet: Fleet, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("micro_ray.network.network.WAIT", 60.0)
    a, b = await fleet.spots("a", "b")
    a.code = code
    network = fleet.network(retry_budget=1)
    assert [await who(network, idempotent=True) for _ in range(20)] == ["b"] * 20
    assert a.started
    b.code = code
    before = started(a, b)
    begun = time.monotonic()
    with pytest.raises(MicroError) as caught:
        await who(network, idempotent=True)
    assert caught.value.code == code
    assert caught.value.id == "greeter"
    # Every node has been asked once: that is the answer, there is nothing to wait for.
    assert started(a, b) == before + 2
    assert time.monotonic() - begun < PROMPT


@pytest.mark.parametrize("code", [400, 404, 408, 409, 412, 413, 429, 499, 500, 501, 504])
async def test_other_errors_are_never_tried_again(fleet: Fleet, code: int) -> None:
    spots = await fleet.spots("a", "b")
    for spot in spots:
        spot.code = code
    network = fleet.network()
    for _ in range(10):
        with pytest.raises(MicroError) as caught:
            await who(network, idempotent=True)
        assert caught.value.code == code
    assert started(*spots) == 10
    assert not any(status.out or status.errors for status in network.nodes())


async def test_what_a_nested_call_met_is_no_refusal_of_the_outer_one(fleet: Fleet) -> None:
    """A service whose own call was refused has been executed, and is not called four times."""
    outer = await fleet.spots("a", "b")
    for spot in await fleet.spots(*(f"i{n}" for n in range(ATTEMPTS + 1)), service="inner"):
        spot.endpoints.service = "inner"
        full(spot)
    network = fleet.network()
    runs = 0

    async def relay() -> None:
        nonlocal runs
        runs += 1
        await network.call("inner", "Greeter.Who", b"{}")

    for spot in outer:
        spot.endpoints.add("Greeter.Relay", relay)
    with pytest.raises(Unavailable) as caught:
        await network.call("greeter", "Greeter.Relay", b"")
    assert not isinstance(caught.value, Refused)
    assert "calls are being served here" in caught.value.detail
    assert runs == 1


async def test_at_most_some_nodes_are_asked(fleet: Fleet) -> None:
    spots = await fleet.spots(*(f"n{number}" for number in range(ATTEMPTS + 4)))
    for spot in spots:
        full(spot)
    network = fleet.network()
    with pytest.raises(Refused, match="calls are being served here"):
        await who(network)
    assert sum(status.calls for status in network.nodes()) == ATTEMPTS
    assert [status.calls for status in network.nodes()].count(1) == ATTEMPTS


# -- the budget ------------------------------------------------------------------------------------


async def test_the_budget_runs_out(fleet: Fleet) -> None:
    """When everything refuses, retries are a share of the calls and not a multiple."""
    # More than one call is tried on: none waits for those that failed it.
    spots = await fleet.spots(*(f"n{number}" for number in range(ATTEMPTS + 1)))
    for spot in spots:
        full(spot)
    network = fleet.network(retry_budget=0.1)
    for _ in range(200):
        with pytest.raises(Refused):
            await who(network)
    asked = sum(status.calls for status in network.nodes())
    assert 200 + Budget.RESERVE <= asked <= 200 + Budget.RESERVE + 0.1 * 200


async def test_without_a_budget_there_is_only_the_reserve(fleet: Fleet) -> None:
    a, _ = await fleet.spots("a", "b")
    full(a)
    network = fleet.network(retry_budget=0)
    results = [await asyncio.gather(who(network), return_exceptions=True) for _ in range(100)]
    failed = [result for (result,) in results if result != "b"]
    assert all(isinstance(error, Refused) for error in failed)
    # Until the breaker leaves it out, and then hardly any more.
    assert len(failed) <= 5


async def test_one_failed_dial_costs_one_retry(fleet: Fleet) -> None:
    """However many calls waited for it: none of them is lost, fresh as the caller is."""
    fleet.nobody("dead")
    spot = await fleet.spot("a")
    network = fleet.network(retry_budget=0)
    for _ in range(5):
        results = await asyncio.gather(*(who(network) for _ in range(200)))
        assert set(results) == {"a"}
        fleet.shift.by += 60  # the dead one is let in again
    assert len(spot.finished) == 1_000
    assert network._budget._tokens >= Budget.RESERVE - 5


# -- one deadline ----------------------------------------------------------------------------------


async def test_the_deadline_is_over_all_attempts(fleet: Fleet) -> None:
    fleet.hole("hole")
    network = fleet.network(dial_timeout=0.15)
    begun = time.monotonic()
    with pytest.raises((Timeout, Unavailable)):
        await who(network, timeout=0.4)
    assert 0.35 < time.monotonic() - begun < PROMPT


async def test_one_broken_connection_costs_one_retry(fleet: Fleet) -> None:
    """A node that dies with many idempotent calls loses none of them, fresh as the caller is."""
    a, b = await fleet.spots("a", "b")
    a.hold.clear()
    b.hold.clear()
    network = fleet.network(retry_budget=0)
    calls = [asyncio.create_task(who(network, idempotent=True)) for _ in range(100)]
    await eventually(lambda: started(a, b) == 100)
    await a.close()
    b.hold.set()
    assert await asyncio.gather(*calls) == ["b"] * 100
    assert network._budget._tokens >= Budget.RESERVE - 2


async def test_the_next_node_has_what_is_left(fleet: Fleet) -> None:
    fleet.hole("hole", metric=1)
    spot = await fleet.spot("a", metric=2)
    network = fleet.network(dial_timeout=0.3)
    assert await who(network, timeout=40.0) == "a"
    (left,) = spot.left
    assert left is not None
    assert 40 - PROMPT < left < 39.71  # a dial was given up on the way


async def test_waiting_for_a_node_uses_up_the_deadline_too(fleet: Fleet) -> None:
    network = fleet.network()
    call = asyncio.create_task(who(network, timeout=40.0))
    await asyncio.sleep(0.3)  # the time that is used up
    spot = await fleet.spot("a")
    assert await call == "a"
    (left,) = spot.left
    assert left is not None
    assert 40 - PROMPT < left < 39.71


async def test_a_dial_is_not_waited_for_beyond_the_deadline(fleet: Fleet) -> None:
    fleet.hole("hole")
    network = fleet.network(dial_timeout=60)
    begun = time.monotonic()
    with pytest.raises(Timeout, match="no connection to hole before the deadline"):
        await who(network, timeout=0.2)
    assert time.monotonic() - begun < PROMPT


async def test_a_silent_node_ends_with_the_deadline(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    spot.hold.clear()
    network = fleet.network()
    begun = time.monotonic()
    with pytest.raises(Silent) as caught:
        await who(network, timeout=0.2, idempotent=True)
    assert 0.15 < time.monotonic() - begun < PROMPT
    assert caught.value.code == 408
    await eventually(lambda: spot.endpoints.in_flight == 0)
    assert len(spot.started) == 1


@pytest.mark.parametrize("timeout", [0, -1, -math.inf])
async def test_a_deadline_that_has_passed(fleet: Fleet, timeout: float) -> None:
    spot = await fleet.spot("a")
    network = fleet.network()
    with pytest.raises(Timeout, match="had passed before"):
        await who(network, timeout=timeout)
    with pytest.raises(Timeout, match="had passed before"):
        await network.open("greeter", "Greeter.Count", timeout=timeout)
    assert not spot.started
    assert not fleet.dialer.dialed


async def test_what_is_no_timeout(fleet: Fleet) -> None:
    await fleet.spot("a")
    network = fleet.network()
    with pytest.raises(BadRequest, match="timeout"):
        await who(network, timeout=math.nan)


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 31 * 86_400.0])
async def test_a_timeout_beyond_measure_is_none(fleet: Fleet, timeout: float) -> None:
    spot = await fleet.spot("a")
    assert await who(fleet.network(), timeout=timeout) == "a"
    assert spot.left == [None]


async def test_the_settings_say_how_long_a_call_may_take(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    network = fleet.network(timeout=0.2)
    assert await who(network) == "a"
    assert await who(network, timeout=7) == "a"
    first, second = spot.left
    assert first is not None
    assert second is not None
    assert 0.1 < first < 0.21
    assert 6.5 < second < 7.01  # the wire has whole milliseconds


# -- the only node ---------------------------------------------------------------------------------


async def test_the_only_node_is_tried_again_when_it_comes_back(fleet: Fleet) -> None:
    """A platform actor that was killed listens at its old address a moment later; the table may
    not have heard of anything."""
    spot = await fleet.spot("a")
    network = fleet.network()
    assert await who(network) == "a"
    address = spot.address
    await spot.close()
    call = asyncio.create_task(who(network))
    await eventually(lambda: network.nodes()[0].out)
    await spot.open(address)
    assert await call == "a"


async def test_the_only_node_that_refuses_for_a_moment(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    full(spot)
    network = fleet.network()
    call = asyncio.create_task(who(network))
    await eventually(lambda: network.nodes()[0].calls >= 2)
    spot.endpoints._max = 10
    assert await call == "a"
    assert len(spot.started) == 1


async def test_an_idempotent_call_waits_for_the_only_node_to_come_back(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    network = fleet.network()
    spot.hold.clear()
    call = asyncio.create_task(who(network, idempotent=True))
    await eventually(lambda: spot.started)
    address = spot.address
    await spot.close()
    spot.hold.set()
    await spot.open(address)
    assert await call == "a"


async def test_the_only_node_is_not_waited_for_for_ever(fleet: Fleet) -> None:
    fleet.nobody("a")
    network = fleet.network()
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="no node of greeter took the call: a of greeter cannot"):
        await who(network)
    took = time.monotonic() - begun
    assert WAIT - 0.2 < took < WAIT + PROMPT
    # It was looked for again and again, but not without a pause.
    assert 2 <= len(fleet.dialer.dialed) <= 10


async def test_what_may_have_been_executed_is_not_called_unavailable(fleet: Fleet) -> None:
    """Two idempotent attempts broke: the caller hears so, not that nothing was done."""
    spot = await fleet.spot("a")
    network = fleet.network()
    spot.hold.clear()
    call = asyncio.create_task(who(network, idempotent=True, timeout=0.6))
    await eventually(lambda: spot.started)
    await spot.close()
    with pytest.raises(MicroError) as caught:
        await call
    assert caught.value.code in (502, 503)
    assert isinstance(caught.value, Broken | Refused | Unavailable)
    spot.hold.set()


async def test_limits_and_conflicts_pass_through(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    network = fleet.network()
    for code, kind in ((429, TooManyRequests), (409, Conflict)):
        spot.code = code
        with pytest.raises(kind, match=f"a says {code}"):
            await who(network)
