"""The router follows a registry that changes, vanishes and starts anew."""

from __future__ import annotations

import asyncio

import pytest

from micro_ray.registry import Endpoint
from micro_ray.router import Delta, Entry, Route
from micro_ray.router.derive import LINGER, QUEUE
from micro_ray.router.table import Table
from tests.fixtures.lines import RegistryPlace
from tests.fixtures.registries import Clock, instance
from tests.fixtures.wait import eventually
from tests.unit.router.conftest import Follow

GRACE = 30.0


async def test_a_route_is_made_of_an_instance(place: RegistryPlace, follow: Follow) -> None:
    ends = (Endpoint(name="Greeter.Call", stream="server"),)
    await place.registry.register(
        instance(
            "Greeter", "a", version="2", namespace="t", endpoints=ends, metadata={"d": "e"},
            addresses=("unix:/a", "tcp:10.0.0.1:5"), host="box", weight=7,
        )
    )  # fmt: skip
    following = await follow()
    await eventually(lambda: following.ids("greeter", "t"))
    assert following.table.routes() == [
        Route(
            id="a", namespace="t", service="Greeter", version="2", host="box", weight=7,
            addresses=("unix:/a", "tcp:10.0.0.1:5"), protocol="frames", network="micro",
            link="local", metric=1,
        )
    ]  # fmt: skip
    assert following.table.entries() == [
        Entry(namespace="t", service="Greeter", version="2", endpoints=ends, metadata={"d": "e"})
    ]
    assert following.router.followed.is_set()
    assert not following.table.stale


async def test_it_follows_every_change(place: RegistryPlace, follow: Follow) -> None:
    following = await follow()
    for node in ("a", "b", "c"):
        await place.registry.register(instance(node=node))
    await following.has("a", "b", "c")
    await place.registry.register(instance(node="b", weight=3))
    await place.registry.deregister("micro", "a")
    await following.has("b", "c")
    assert following.table.lookup("micro", "greeter")[0].weight == 3
    await place.registry.register(instance("other", "c"))
    await following.has("b")
    assert following.ids("other") == ["c"]


async def test_the_entry_is_that_of_the_newest_registration(
    place: RegistryPlace, follow: Follow
) -> None:
    old, new = (Endpoint(name="A.Old"),), (Endpoint(name="A.New"),)
    await place.registry.register(instance(node="a", endpoints=new))
    await place.registry.register(instance(node="b", endpoints=old))
    await place.registry.register(instance(node="a", endpoints=new, weight=1))
    following = await follow()
    await following.has("a", "b")
    assert following.table.entry("micro", "greeter").endpoints == new
    await place.registry.register(instance(node="b", endpoints=old, weight=1))
    await eventually(lambda: following.table.entry("micro", "greeter").endpoints == old)


async def test_a_service_without_nodes_lingers(
    place: RegistryPlace, follow: Follow, clock: Clock
) -> None:
    following = await follow()
    await place.registry.register(instance(node="a"))
    await place.registry.register(instance(node="b", version="2"))
    await following.has("a", "b")
    await place.registry.deregister("micro", "a")
    await following.has("b")
    clock.now += LINGER - 0.1
    following.router.prune()
    assert following.table.versions("micro", "greeter") == ["2", "latest"]
    clock.now += 0.2
    following.router.prune()
    assert following.table.versions("micro", "greeter") == ["2"]
    await place.registry.deregister("micro", "b")
    await following.has()
    assert following.table.known("micro", "greeter")
    # It comes back in time: nothing of it goes.
    clock.now += LINGER - 1
    await place.registry.register(instance(node="c", version="2"))
    await following.has("c")
    clock.now += LINGER
    following.router.prune()
    assert following.table.known("micro", "greeter")


async def test_a_node_that_moves_leaves_its_service_to_linger_and_go(
    place: RegistryPlace, follow: Follow, clock: Clock
) -> None:
    following = await follow()
    await place.registry.register(instance(node="a"))
    await following.has("a")
    await place.registry.register(instance("other", "a"))
    await following.has()
    assert following.table.services("micro") == ["greeter", "other"]
    clock.now += LINGER + 1
    following.router.prune()
    assert following.table.services("micro") == ["other"]


async def test_pruning_runs_by_itself(place: RegistryPlace, follow: Follow, clock: Clock) -> None:
    following = await follow()
    await place.registry.register(instance())
    await following.has("n1")
    await place.registry.deregister("micro", "n1")
    await following.has()
    clock.now += LINGER + 1
    await eventually(lambda: not following.table.known("micro", "greeter"), within=2)


# -- the registry goes -----------------------------------------------------------------------------


async def test_the_table_stays_while_the_registry_is_gone(
    place: RegistryPlace, follow: Follow, clock: Clock
) -> None:
    following = await follow(grace=GRACE)
    await place.registry.register(instance())
    await following.has("n1")
    await place.close()
    await following.stale()
    clock.now += 1_000
    following.router.prune()
    assert following.ids() == ["n1"]
    assert following.table.known("micro", "greeter")
    await place.open(same=True)
    await following.stale(False)
    assert following.ids() == ["n1"]
    clock.now += 1_000
    following.router.prune()
    assert following.ids() == ["n1"]


async def test_what_changed_while_the_line_was_cut(place: RegistryPlace, follow: Follow) -> None:
    """The registry lives and knows: what it has no more goes at once."""
    following = await follow(grace=GRACE)
    for node in ("a", "b"):
        await place.registry.register(instance(node=node))
    await following.has("a", "b")
    await place.close()
    await following.stale()
    await place.registry.deregister("micro", "a")
    await place.registry.register(instance(node="c"))
    await place.open(same=True)
    await following.has("b", "c")


async def test_a_new_life_of_the_registry_has_the_grace_to_confirm(
    place: RegistryPlace, follow: Follow, clock: Clock
) -> None:
    following = await follow(grace=GRACE)
    for node in ("a", "b"):
        await place.registry.register(instance(node=node))
    await following.has("a", "b")
    await place.close()
    await following.stale()
    await place.open()
    await following.stale(False)
    assert following.ids() == ["a", "b"]  # an empty registry takes nothing
    await place.registry.register(instance(node="a"))
    clock.now += GRACE - 1
    following.router.prune()
    assert following.ids() == ["a", "b"]
    clock.now += 2
    await eventually(lambda: following.ids() == ["a"], within=2)
    clock.now += 1_000
    following.router.prune()
    assert following.ids() == ["a"]


async def test_a_registry_that_was_gone_for_long_has_the_grace_to_confirm(
    place: RegistryPlace, follow: Follow, clock: Clock
) -> None:
    """Nobody could renew: that nodes have ended there says nothing of them."""
    following = await follow(grace=GRACE)
    for node in ("a", "b"):
        await place.registry.register(instance(node=node))
    await following.has("a", "b")
    await place.close()
    await following.stale()
    clock.now += GRACE
    for node in ("a", "b"):
        await place.registry.deregister("micro", node)
    await place.open(same=True)
    await following.stale(False)
    assert following.ids() == ["a", "b"]
    await place.registry.register(instance(node="a"))
    clock.now += GRACE + 1
    await following.has("a")


async def test_doubt_outlives_a_cut_line(
    place: RegistryPlace, follow: Follow, clock: Clock
) -> None:
    """The second look at the same new life of the registry is no reason to drop anything early."""
    following = await follow(grace=GRACE)
    await place.registry.register(instance())
    await following.has("n1")
    await place.close()
    await following.stale()
    await place.open()
    await following.stale(False)
    await place.close()
    await following.stale()
    await place.open(same=True)
    await following.stale(False)
    assert following.ids() == ["n1"]
    clock.now += GRACE - 1
    following.router.prune()
    assert following.ids() == ["n1"]
    clock.now += 2
    following.router.prune()
    assert following.ids() == []


async def test_each_new_life_has_the_whole_grace(
    place: RegistryPlace, follow: Follow, clock: Clock
) -> None:
    following = await follow(grace=GRACE)
    await place.registry.register(instance())
    await following.has("n1")
    for _ in range(3):
        await place.close()
        await following.stale()
        clock.now += GRACE - 1
        following.router.prune()
        await place.open()
        await following.stale(False)
        following.router.prune()
        assert following.ids() == ["n1"]


async def test_nothing_goes_while_nobody_could_confirm_it(
    place: RegistryPlace, follow: Follow, clock: Clock
) -> None:
    """The new life of the registry ended too, before its grace did."""
    following = await follow(grace=GRACE)
    await place.registry.register(instance())
    await place.registry.register(instance("other", "n2"))
    await following.has("n1")
    await place.registry.deregister("micro", "n2")
    await following.has(service="other")
    await place.close()
    await following.stale()
    await place.open()
    await following.stale(False)
    await place.close()
    await following.stale()
    clock.now += 10 * GRACE
    following.router.prune()
    assert following.ids() == ["n1"]
    assert following.table.known("micro", "other")


async def test_who_took_over_an_address_took_the_place(
    place: RegistryPlace, follow: Follow
) -> None:
    """A process that was restarted together with the registry listens where the old one did."""
    following = await follow(grace=GRACE)
    await place.registry.register(instance(node="old", addresses=("unix:/s", "tcp:127.0.0.1:1")))
    await place.registry.register(instance(node="other", addresses=("unix:/o",)))
    await following.has("old", "other")
    await place.close()
    await following.stale()
    await place.open()
    await following.stale(False)
    await place.registry.register(instance(node="new", addresses=("unix:/s", "tcp:127.0.0.1:2")))
    await following.has("new", "other")
    # The same when the new one is in the first look already.
    await place.close()
    await following.stale()
    await place.open()
    await place.registry.register(instance(node="newer", addresses=("unix:/s",)))
    await following.has("newer", "other")


@pytest.mark.parametrize("in_first_look", [True, False])
async def test_an_address_of_another_machine_is_another_place(
    place: RegistryPlace, follow: Follow, in_first_look: bool
) -> None:
    following = await follow(grace=GRACE)
    await place.registry.register(instance(node="there", addresses=("unix:/s",), host="b"))
    await following.has("there")
    await place.close()
    await following.stale()
    here = instance(node="here", addresses=("unix:/s",), host="a")
    await place.open()
    if in_first_look:
        await place.registry.register(here)
        await following.stale(False)
    else:
        await following.stale(False)
        await place.registry.register(here)
    await following.has("here", "there")


async def test_a_router_that_starts_without_a_registry(
    place: RegistryPlace, follow: Follow
) -> None:
    await place.close()
    following = await follow()
    assert following.table.stale
    assert not following.router.followed.is_set()
    first = await anext(aiter(following.router.watch()))
    assert (first.full, first.stale, first.routes) == (True, True, ())
    await place.open()
    await place.registry.register(instance())
    await following.has("n1")
    assert following.router.followed.is_set()


# -- watchers --------------------------------------------------------------------------------------


async def test_watchers_get_the_table_and_then_its_changes(
    place: RegistryPlace, follow: Follow
) -> None:
    following = await follow()
    await place.registry.register(instance(node="a"))
    await following.has("a")
    copies = [Table() for _ in range(5)]
    seen: list[list[Delta]] = [[] for _ in copies]

    async def watch(copy: Table, deltas: list[Delta]) -> None:
        async for delta in following.router.watch():
            deltas.append(delta)
            assert copy.apply(delta), "a gap"

    tasks = [asyncio.create_task(watch(*each)) for each in zip(copies, seen, strict=True)]
    await eventually(lambda: all(copy.version for copy in copies))
    for number in range(50):
        await place.registry.register(instance(node=f"n{number}"))
    await place.registry.deregister("micro", "a")
    await following.has(*(f"n{number}" for number in range(50)))
    await eventually(lambda: all(c.revision == following.table.revision for c in copies))
    assert all(copy.full() == following.table.full() for copy in copies)
    for deltas in seen:
        assert [delta.full for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results


async def test_a_watcher_that_is_too_slow_gets_the_whole_table_again(
    place: RegistryPlace, follow: Follow
) -> None:
    following = await follow()
    await eventually(following.router.followed.is_set)
    copy, watch = Table(), following.router.watch()
    copy.apply(await anext(watch))
    for number in range(QUEUE + 10):
        await place.registry.register(instance(node=f"n{number}", weight=number))
    await eventually(lambda: following.table.size == QUEUE + 10)
    fulls = 0
    async with asyncio.timeout(10):
        while copy.revision < following.table.revision:
            delta = await anext(watch)
            fulls += delta.full
            assert copy.apply(delta)
    assert fulls == 1
    assert copy.full() == following.table.full()
    await place.registry.deregister("micro", "n0")
    assert copy.apply(await asyncio.wait_for(anext(watch), 5))
    assert copy.size == QUEUE + 9
    await watch.aclose()


async def test_leaving_leaves_nothing(place: RegistryPlace, follow: Follow) -> None:
    following = await follow()
    watch = following.router.watch()
    await anext(watch)
    assert len(following.router._watchers) == 1
    await watch.aclose()
    assert not following.router._watchers


async def test_a_registry_that_answers_garbage_does_not_end_the_router(
    place: RegistryPlace, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised: it is reported, the table stays, and it is tried again."""
    following = await follow()
    await place.registry.register(instance())
    await following.has("n1")

    async def broken() -> None:
        raise ValueError("not even an error of ours")

    with monkeypatch.context() as patch:
        patch.setattr(following.router._registry, "snapshot", broken)
        await place.close()
        await place.open(same=True)
        await following.stale()
        assert following.ids() == ["n1"]
    await following.stale(False)


async def test_a_thousand_nodes_come_at_once(place: RegistryPlace, follow: Follow) -> None:
    following = await follow()
    await eventually(following.router.followed.is_set)
    for number in range(1_000):
        await place.registry.register(instance(f"s{number % 50}", f"n{number}"))
    await eventually(lambda: following.table.size == 1_000)
    assert len(following.table.entries()) == 50
