"""Time in etcd: registrations end by its clock, and all renewals of a process share one stream."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from micro_ray.registry import Action, Registry
from micro_ray.registry.etcd import EtcdRegistry
from micro_ray.registry.etcd_url import parse
from tests.fixtures.etcd import EtcdServer, server
from tests.fixtures.registries import instance
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def etcd() -> AsyncIterator[EtcdServer]:
    async with server() as up:
        yield up


@pytest_asyncio.fixture(loop_scope="module")
async def two(
    etcd: EtcdServer, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Registry, Registry]]:
    """Two members of a pool."""
    place, prefix = parse(f"etcd://{etcd.address}"), request.node.name.replace("_", "-")
    async with EtcdRegistry(place, prefix=prefix) as one, EtcdRegistry(place, prefix=prefix) as two:
        yield one, two


Two = tuple[Registry, Registry]


async def ids(registry: Registry) -> list[str]:
    return [i.node.id for i in (await registry.snapshot()).instances]


async def streams(etcd: EtcdServer) -> int:
    """How many streams of renewals the server has ever begun."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"{etcd.url}/metrics")).text
    found = re.search(r'grpc_server_started_total{grpc_method="LeaseKeepAlive".*} (\d+)', text)
    return int(found[1]) if found else 0


async def leases(etcd: EtcdServer) -> int:
    return len((await etcd.ask("lease/leases")).get("leases", []))


async def test_registrations_end_by_their_own_ttl_and_within_a_second(two: Two) -> None:
    registry, _ = two
    start = await registry.snapshot()
    begun = time.monotonic()
    for ttl in (3, 1, 2):
        await registry.register(instance(node=f"t{ttl}"), ttl=ttl)
    await registry.register(instance(node="long"), ttl=60)
    ended: dict[str, float] = {}
    async for change in registry.watch(epoch=start.epoch, revision=start.revision):
        if change.action is Action.DELETE:
            ended[change.instance.node.id] = time.monotonic() - begun
            if len(ended) == 3:
                break
    assert list(ended) == ["t1", "t2", "t3"]
    for ttl in (1, 2, 3):
        assert ttl - 0.1 <= ended[f"t{ttl}"] < ttl + 2  # one second, and one for a busy machine
    assert await ids(registry) == ["long"]


async def test_a_renewal_at_any_member_prolongs(two: Two) -> None:
    """Registered at one, renewed at the other, by its id or by the same registration."""
    one, other = two
    for node in ("renewed", "again", "ends"):
        await one.register(instance(node=node), ttl=3)
    end = time.monotonic() + 4.5
    while time.monotonic() < end:
        assert await other.renew("micro", ["renewed", "nobody"]) == ["nobody"]
        await other.register(instance(node="again"), ttl=3)
        assert {"renewed", "again"} <= set(await ids(one))
        await asyncio.sleep(0.3)
    assert await ids(one) == ["renewed", "again"]
    assert await one.renew("micro", ["renewed", "again", "ends"]) == ["ends"]
    # It has ended there: the member that registered it does not go by what it remembers.
    await one.register(instance(node="ends"), ttl=3)
    assert "ends" in await ids(other)


async def test_a_registration_may_shorten_and_lengthen(two: Two) -> None:
    registry, other = two
    await registry.register(instance(node="short"), ttl=3600)
    await registry.register(instance(node="long"), ttl=1)
    start = await registry.snapshot()
    await registry.register(instance(node="short"), ttl=1)
    await other.register(instance(node="long"), ttl=3600)

    async def only_long() -> bool:
        return await ids(registry) == ["long"]

    await eventually(only_long, within=4)
    async for change in registry.watch(epoch=start.epoch, revision=start.revision):
        # What TTL it has is no change, so this is the first.
        assert (change.action, change.instance.node.id) == (Action.DELETE, "short")
        break


async def test_all_renewals_of_a_process_share_one_stream(etcd: EtcdServer, two: Two) -> None:
    one, other = two
    nodes = [f"n{number}" for number in range(100)]
    await asyncio.gather(*(one.register(instance(node=node)) for node in nodes))
    before = await streams(etcd)
    for _ in range(3):
        await asyncio.gather(*(one.register(instance(node=node)) for node in nodes))
        assert await one.renew("micro", nodes) == []
    assert await streams(etcd) == before + 1
    assert await other.renew("micro", nodes) == []
    assert await streams(etcd) == before + 2


async def test_no_lease_is_left_behind(etcd: EtcdServer, two: Two) -> None:
    """Neither of nodes that have gone, nor of those that changed, moved or were written at once."""
    one, other = two
    before = await leases(etcd)
    for number in range(5):
        await one.register(instance(weight=number))
        await other.register(instance(weight=number), ttl=40 + number, holder=str(number))
    await asyncio.gather(
        *(each.register(instance(node="x", weight=w)) for w in range(5) for each in two)
    )

    async def two_left() -> bool:
        return await leases(etcd) == before + 2

    await eventually(two_left)
    await one.deregister("micro", "n1")
    await other.deregister("micro", "x")
    assert await leases(etcd) == before


async def test_what_a_hand_took_out_is_missed_by_the_next_look(etcd: EtcdServer, two: Two) -> None:
    """A member trusts its memory for the TTL of a node, and no longer."""
    one, _ = two
    await one.register(instance(), ttl=1)
    prefix = b"/test-what-a-hand-took-out-is-missed-by-the-next-look/registry/nodes/"
    await etcd.ask("kv/deleterange", key=prefix, range_end=prefix[:-1] + b"0")

    async def missed() -> bool:
        return await one.renew("micro", ["n1"]) == ["n1"]

    await eventually(missed, within=3, every=0.1)
    await one.register(instance(), ttl=1)
    assert await ids(one) == ["n1"]
