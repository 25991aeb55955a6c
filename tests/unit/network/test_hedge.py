"""A second attempt elsewhere when the first one is slow."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from micro_ray.errors import BadGateway, Conflict, MicroError, NotFound, Timeout
from micro_ray.network.health import Budget
from micro_ray.network.network import Network
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.network.conftest import Fleet, Spot, who


async def hedged(network: Network, after: float = 0.05, **options: Any) -> str:
    options.setdefault("idempotent", True)
    return await who(network, hedge_after=after, **options)


async def pair(fleet: Fleet) -> tuple[Spot, Spot]:
    """A node that is called first, and one that is not while the first can be."""
    first = await fleet.spot("first", metric=1)
    return first, await fleet.spot("second", metric=2)


async def test_a_quick_answer_needs_no_second(fleet: Fleet) -> None:
    first, second = await pair(fleet)
    network = fleet.network()
    assert [await hedged(network, 1.0) for _ in range(20)] == ["first"] * 20
    assert (len(first.started), second.started) == (20, [])


async def test_a_slow_one_is_asked_elsewhere_and_given_up(fleet: Fleet) -> None:
    first, second = await pair(fleet)
    first.hold.clear()
    network = fleet.network()
    begun = time.monotonic()
    assert await hedged(network) == "second"
    assert time.monotonic() - begun > 0.04
    assert (len(first.started), len(second.started)) == (1, 1)
    await eventually(lambda: first.endpoints.in_flight == 0)  # it was cancelled there
    assert first.finished == []
    first.hold.set()


async def test_the_first_answer_wins_whichever_it_is(fleet: Fleet) -> None:
    first, second = await pair(fleet)
    first.hold.clear()
    second.hold.clear()
    call = asyncio.create_task(hedged(fleet.network()))
    await eventually(lambda: second.started)
    first.hold.set()
    assert await call == "first"
    await eventually(lambda: second.endpoints.in_flight == 0)
    second.hold.set()
    assert len(second.started) == 1


async def test_only_what_is_idempotent(fleet: Fleet) -> None:
    first, second = await pair(fleet)
    first.delay = 0.15
    assert await hedged(fleet.network(), idempotent=False) == "first"
    assert second.started == []


async def test_without_another_node_there_is_no_second(fleet: Fleet) -> None:
    spot = await fleet.spot("only")
    spot.delay = 0.15
    assert await hedged(fleet.network()) == "only"
    assert len(spot.started) == 1


async def test_the_budget_bounds_it(fleet: Fleet) -> None:
    first, second = await pair(fleet)
    first.hold.clear()
    network = fleet.network(retry_budget=0)
    calls = [asyncio.create_task(hedged(network, 0.02)) for _ in range(50)]
    await eventually(lambda: sum(call.done() for call in calls) == Budget.RESERVE)
    first.hold.set()
    answers = await asyncio.gather(*calls)
    assert answers.count("second") == len(second.started) == Budget.RESERVE


@pytest.mark.parametrize("slow", ["first", "second"])
async def test_an_error_of_the_services_own_is_an_answer(fleet: Fleet, slow: str) -> None:
    first, second = await pair(fleet)
    first.code, second.code = 404, 409
    first.hold.clear()
    second.hold.clear()
    call = asyncio.create_task(hedged(fleet.network()))
    await eventually(lambda: second.started)
    (first if slow == "second" else second).hold.set()
    with pytest.raises(NotFound if slow == "second" else Conflict):
        await asyncio.wait_for(call, 5)
    first.hold.set()
    second.hold.set()


async def test_a_failure_waits_for_the_other(fleet: Fleet) -> None:
    first, second = await pair(fleet)
    first.hold.clear()
    second.delay = 0.3
    call = asyncio.create_task(hedged(fleet.network()))
    await eventually(lambda: second.started)
    await first.close()  # it breaks, while the second is under way
    assert await call == "second"
    first.hold.set()


async def test_an_answer_is_preferred_to_a_failure_of_the_same_moment(fleet: Fleet) -> None:
    first, second = await pair(fleet)
    first.code = 502
    network = fleet.network(retry_budget=0)
    for _ in range(10):
        network._budget._tokens = 1.0  # for the second, and none to try the first again
        first.hold.clear()
        second.hold.clear()
        before = len(second.started)
        call = asyncio.create_task(hedged(network, 0.01))
        await eventually(lambda before=before: len(second.started) > before)
        first.hold.set()
        second.hold.set()
        assert await call == "second"


async def test_when_both_fail_the_failure_is_told(fleet: Fleet) -> None:
    first, second = await pair(fleet)
    first.code = second.code = 502
    first.delay = 0.1
    with pytest.raises(BadGateway):
        await asyncio.wait_for(hedged(fleet.network()), 5)


async def test_one_deadline_for_both(fleet: Fleet) -> None:
    first, second = await pair(fleet)
    first.hold.clear()
    second.hold.clear()
    begun = time.monotonic()
    with pytest.raises(Timeout):
        await hedged(fleet.network(), 0.1, timeout=1.0)
    assert 0.95 < time.monotonic() - begun < PROMPT
    (left,) = second.left
    assert left is not None
    assert left < 0.92
    first.hold.set()
    second.hold.set()


async def test_giving_up_gives_both_up(fleet: Fleet) -> None:
    first, second = await pair(fleet)
    first.hold.clear()
    second.hold.clear()
    call = asyncio.create_task(hedged(fleet.network()))
    await eventually(lambda: second.started)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await eventually(lambda: first.endpoints.in_flight == second.endpoints.in_flight == 0)


async def test_an_unknown_service_is_told_at_once(fleet: Fleet) -> None:
    network = fleet.network()
    with pytest.raises(MicroError) as caught:
        await network.call("none", "X.Y", b"", idempotent=True, hedge_after=5.0)
    assert isinstance(caught.value, NotFound)
