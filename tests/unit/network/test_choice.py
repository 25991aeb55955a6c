"""Which node a call goes to, and what is said when there is none."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import pytest

from micro_ray.errors import NotFound, Unavailable
from micro_ray.network.network import WAIT, Network
from micro_ray.router import Delta, Filter
from micro_ray.router.table import Table
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.network.conftest import Fleet, who


async def counted(network: Network, calls: int = 200, **options: Any) -> Counter[str]:
    """Who answers calls made one after the other."""
    return Counter([await who(network, **options) for _ in range(calls)])


async def test_the_less_loaded_node_gets_more(fleet: Fleet) -> None:
    """Two slow nodes and a quick one, 30 calls at a time."""
    spots = await fleet.spots("quick", "slow-1", "slow-2")
    spots[0].delay, spots[1].delay, spots[2].delay = 0.001, 0.2, 0.2
    network = fleet.network()
    left = 300

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await who(network)

    await asyncio.gather(*(work() for _ in range(30)))
    counts = [len(spot.finished) for spot in spots]
    assert counts[0] > counts[1] + counts[2]  # at random it would be half of it


async def test_a_stuck_node_gets_no_more_than_its_share_of_what_is_under_way(
    fleet: Fleet,
) -> None:
    good, stuck = await fleet.spots("good", "stuck")
    stuck.hold.clear()
    network = fleet.network()
    calls = [asyncio.create_task(who(network)) for _ in range(200)]
    await eventually(lambda: sum(call.done() for call in calls) == len(good.finished) > 0)
    await eventually(lambda: len(good.finished) + len(stuck.started) == 200)
    await eventually(lambda: network.nodes()[0].in_flight == 0)
    # Sent in one go they are even; afterwards every call goes to the one that answers.
    before = len(stuck.started)
    assert before == 100
    assert await counted(network, 50) == {"good": 50}
    assert len(stuck.started) == before
    stuck.hold.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize(
    ("weights", "shares"), [((300, 100), (0.75, 0.25)), ((2, 1, 3), (1 / 3, 1 / 6, 1 / 2))]
)
async def test_by_weight(fleet: Fleet, weights: tuple[int, ...], shares: tuple[float, ...]) -> None:
    for number, weight in enumerate(weights):
        await fleet.spot(str(number), weight=weight)
    counts = await counted(fleet.network(rand=random.Random(5).random), 2_000)
    for number, share in enumerate(shares):
        assert counts[str(number)] / 2_000 == pytest.approx(share, abs=0.04)


async def test_weight_0_gets_nothing_while_others_have_some(fleet: Fleet) -> None:
    zero = await fleet.spot("zero", weight=0)
    some = await fleet.spot("some", weight=1)
    network = fleet.network()
    assert await counted(network, 50) == {"some": 50}
    # Not even when the others fail: its weight says that it is not to be called.
    await some.close()
    with pytest.raises(Unavailable):
        await who(network, timeout=0.2)
    assert not zero.started
    # A caller that asks for it gets it, and so do all when there is no other.
    assert await who(network, filter=Filter(node="zero")) == "zero"
    fleet.drop("some")
    assert await who(network) == "zero"


async def test_the_nearest_metric_first_and_the_next_when_it_fails(fleet: Fleet) -> None:
    near, far = await fleet.spot("near", metric=1), await fleet.spot("far", metric=5)
    network = fleet.network()
    assert await counted(network, 30) == {"near": 30}
    address = near.address
    await near.close()
    assert await counted(network, 30) == {"far": 30}
    await near.open(address)
    fleet.shift.by += 2
    assert await counted(network, 30) == {"near": 30}
    assert far.finished


async def test_a_change_of_the_table_counts_at_once(fleet: Fleet) -> None:
    await fleet.spots("a", "b")
    network = fleet.network()
    assert set(await counted(network, 30)) == {"a", "b"}
    fleet.drop("a")
    assert await counted(network, 30) == {"b": 30}
    fleet.change("b", weight=0)
    await fleet.spot("c", weight=5)
    assert await counted(network, 30) == {"c": 30}


async def test_names_match_without_regard_to_case(fleet: Fleet) -> None:
    await fleet.spot("a")
    network = fleet.network()
    assert await network.call("GREETER", "Greeter.Who", b"{}") == b'"a"'
    with pytest.raises(NotFound):
        await network.call("greeter", "Greeter.Who", b"{}", namespace="other")


async def test_namespaces_are_apart(fleet: Fleet) -> None:
    """Nodes of the same id too."""
    a, b = await fleet.spots("a", "b")
    fleet.drop("a", "b")
    fleet.route("n", a.address)
    fleet.route("n", b.address, namespace="other")
    network = fleet.network()
    assert await counted(network, 20) == {"a": 20}
    assert await counted(network, 20, namespace="other") == {"b": 20}
    assert [s.id for s in network.nodes("other")] == ["n"]
    fleet.drop("n")
    assert await who(network, namespace="other") == "b"


# -- filters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filter",
    [Filter(version="2"), Filter(node="b"), Filter(host="box"), Filter(link="network"),
     Filter(network="n"), Filter(version="2", node="b")],
    ids=str,
)  # fmt: skip
async def test_only_what_the_filter_accepts(fleet: Fleet, filter: Filter) -> None:
    await fleet.spot("a", version="1")
    await fleet.spot("b", version="2", host="box", link="network", network="n")
    assert await counted(fleet.network(), 30, filter=filter) == {"b": 30}


async def test_a_version_that_there_is_not(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("micro_ray.network.network.WAIT", 60.0)
    await fleet.spot("a", version="1")
    await fleet.spot("b", version="2")
    network = fleet.network()
    begun = time.monotonic()
    with pytest.raises(NotFound, match="no version '3' of greeter; there is 1, 2, latest"):
        await who(network, filter=Filter(version="3"))
    with pytest.raises(NotFound, match="no node 'c' of greeter; there is a, b"):
        await who(network, filter=Filter(node="c"))
    with pytest.raises(NotFound, match="no service 'greter'; did you mean greeter"):
        await network.call("greter", "X.Y", b"", filter=Filter(version="1"))
    assert time.monotonic() - begun < PROMPT


async def test_a_version_whose_nodes_are_being_replaced_is_waited_for(fleet: Fleet) -> None:
    await fleet.spot("a", version="1")
    spot = await fleet.spot("b", version="2")
    fleet.drop("b")
    network = fleet.network()
    call = asyncio.create_task(who(network, filter=Filter(version="2")))
    await asyncio.sleep(0)
    fleet.route("b2", spot.address, version="2")
    assert await call == "b"


async def test_no_node_that_the_filter_accepts(fleet: Fleet) -> None:
    await fleet.spot("a")
    with pytest.raises(Unavailable, match="greeter has no node that the filter accepts"):
        await who(fleet.network(), timeout=0.1, filter=Filter(host="none"))


async def test_the_second_attempt_keeps_to_the_filter(fleet: Fleet) -> None:
    fleet.nobody("dead", version="2")
    await fleet.spot("a", version="1")
    await fleet.spot("b", version="2")
    assert await counted(fleet.network(), 20, filter=Filter(version="2")) == {"b": 20}


# -- nobody ----------------------------------------------------------------------------------------


async def test_an_unknown_service_says_what_is_near(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("micro_ray.network.network.WAIT", 60.0)
    network = fleet.network()
    begun = time.monotonic()
    with pytest.raises(NotFound) as caught:
        await network.call("greetr", "Greeter.Who", b"{}")
    assert caught.value.detail == "no service 'greetr'; did you mean greeter?"
    with pytest.raises(NotFound, match=r"no service 'xyzzy'$"):
        await network.call("xyzzy", "X.Y", b"{}")
    with pytest.raises(NotFound):
        await network.open("xyzzy", "X.Y")
    with pytest.raises(NotFound) as caught:
        await network.call("x" * 100_000, "X.Y", b"{}")
    assert len(caught.value.detail) < 200
    assert time.monotonic() - begun < PROMPT


async def test_a_known_service_without_nodes_is_waited_for(fleet: Fleet) -> None:
    network = fleet.network()
    calls = [asyncio.create_task(who(network)) for _ in range(20)]
    await asyncio.sleep(0)
    fleet.route("other", "unix:/none", service="other")  # a change that is no help
    await asyncio.sleep(0)
    assert not any(call.done() for call in calls)
    await fleet.spot("a")
    assert await asyncio.gather(*calls) == ["a"] * 20


async def test_but_not_for_ever(fleet: Fleet) -> None:
    network = fleet.network()
    begun = time.monotonic()
    results = await asyncio.gather(who(network), who(network, timeout=0.2), return_exceptions=True)
    assert WAIT - 0.1 < time.monotonic() - begun < WAIT + PROMPT
    for result in results:
        assert isinstance(result, Unavailable)
        assert "greeter has no node just now" in result.detail
        assert result.retry_after


async def test_a_service_that_goes_while_it_is_waited_for(fleet: Fleet) -> None:
    network = fleet.network()
    call = asyncio.create_task(who(network))
    await asyncio.sleep(0)
    fleet._apply(gone_entries=(("micro", "greeter", "latest"),))
    with pytest.raises(NotFound):
        await asyncio.wait_for(call, 1.5)


async def test_without_a_table_calls_wait_for_one(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    table = Table()
    network = fleet.network(table=table)
    call = asyncio.create_task(who(network))
    await asyncio.sleep(0)
    # A router that has just started and followed nothing is no help.
    table.apply(Delta(epoch="e", revision=0, full=True, stale=True))
    await asyncio.sleep(0)
    assert not call.done()
    table.apply(fleet.table.full())
    assert await call == "a"
    assert spot.finished


async def test_without_a_table_nothing_is_called_unknown(fleet: Fleet) -> None:
    table = Table()
    network = fleet.network(table=table)
    for _ in range(2):
        with pytest.raises(Unavailable, match="no route table yet: no router has answered"):
            await who(network, timeout=0.1)
        table.apply(Delta(epoch="e", revision=0, full=True, stale=True))
    # An empty table that is good says that there is nothing.
    table.apply(Delta(epoch="e", revision=1))
    with pytest.raises(NotFound):
        await who(network)


async def test_a_stale_table_is_used(fleet: Fleet) -> None:
    await fleet.spot("a")
    fleet.table.mark_stale()
    network = fleet.network()
    assert await who(network) == "a"
    with pytest.raises(NotFound, match="no service 'other'"):
        await network.call("other", "X.Y", b"{}")
