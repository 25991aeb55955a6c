"""What a namespace may do in the store, in events and in the broker: counted by their members, for
whoever comes to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest

from micro_ray.auth import PLATFORM, Identity
from micro_ray.auth import Kind as Being
from micro_ray.broker.memory import MemoryBroker
from micro_ray.context import Context, use
from micro_ray.errors import BadRequest, TooLarge, TooManyRequests
from micro_ray.events.sqlite import SqliteEvents
from micro_ray.limits import BACKENDS, Kind, Quota
from micro_ray.limits.gate import Gate
from micro_ray.limits.metered_broker import MeteredBroker
from micro_ray.limits.quota_events import QuotaEvents
from micro_ray.limits.quota_store import QuotaStore
from micro_ray.limits.rules import Rules, parse, quota_of
from micro_ray.sdk.testing import Here, platform
from micro_ray.store import Delete, Put
from micro_ray.store.memory import MemoryStore
from micro_ray.wire import events as events_face
from micro_ray.wire import store as face
from micro_ray.wire.gate import Supply
from micro_ray.wire.remote_events import RemoteEvents
from micro_ray.wire.store import RemoteStore
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.api.door import open_door

#: So few that none comes while a test runs.
FEW = 0.001


def alone(kind: Kind, clock: list[float], *, burst: int, rate: float = FEW) -> Gate:
    """A gate without a limiter."""
    gate = Gate(kinds=(kind,), clock=lambda: clock[0])
    gate.follow("micro")
    gate.rule("micro", Rules(parse({str(kind): {"rate": rate, "burst": burst}}), 1))
    gate.alone()
    return gate


async def done(*operations: Callable[[], Awaitable[object]]) -> int:
    """How many of them were let in before one was refused."""
    for count, operation in enumerate(operations):
        try:
            await operation()
        except TooManyRequests:
            return count
    return len(operations)


async def test_each_verb_of_the_store_is_an_operation() -> None:
    backend = MemoryStore()
    await backend.write("k", b"v")

    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    await backend.write_blob("b", nothing())

    async def watched(store: QuotaStore) -> None:
        async with aclosing(store.watch(revision=0)) as changes:
            await anext(changes)

    async def read_blob(store: QuotaStore) -> None:
        async with aclosing(store.read_blob("b")) as pieces:
            async for _ in pieces:
                pass

    verbs: list[Callable[[QuotaStore], Awaitable[object]]] = [
        lambda store: store.read("k"),
        lambda store: store.query(),
        lambda store: store.keys(),
        lambda store: store.write("k", b"v"),
        lambda store: store.delete("none"),
        lambda store: store.transact([Put(key="a", value=b""), Delete(key="a")]),
        lambda store: store.databases(),
        lambda store: store.tables(),
        lambda store: store.usage(),
        lambda store: store.revision(),
        lambda store: store.write_blob("c", nothing()),
        lambda store: store.blobs(),
        lambda store: store.delete_blob("c"),
        watched,
        read_blob,
    ]
    for verb in verbs:
        clock = [0.0]
        store = QuotaStore(backend, alone(Kind.STORE, clock, burst=2))
        assert await done(*[lambda verb=verb, store=store: verb(store)] * 3) == 2
    with pytest.raises(TooManyRequests) as raised:
        await store.read("k")
    assert raised.value.detail == (
        "namespace micro may do 0.001 operations a second in the store (2 at once); come again "
        "later"
    )
    assert 0 < raised.value.retry_after <= 1 / FEW
    clock[0] += 1 / FEW
    assert (await store.read("k")).value == b"v"
    with pytest.raises(TooManyRequests):
        await store.read("k")
    assert await done(*[lambda: store.keys(namespace="other")] * 9) == 9


async def test_the_platform_itself_is_not_counted() -> None:
    """Else what follows config would wait for config, and that for the store."""
    store = QuotaStore(MemoryStore(), alone(Kind.STORE, [0.0], burst=1))
    await store.keys()
    own = Identity(id="runtime", kind=Being.SERVICE, scopes=(PLATFORM,))
    admin = Identity(id="admin", kind=Being.ADMIN)
    for identity, database, good in (
        (own, "micro", True),
        (own, "config", True),
        (None, "config", True),
        (None, "auth", True),
        (None, "micro", False),
        (admin, "micro", False),
        (admin, "config", False),
        (Identity(id="x", kind=Being.SERVICE, namespace="t", scopes=(PLATFORM,)), "auth", False),
    ):
        reach = None if identity is None else lambda namespace: None
        with use(Context(identity=identity, reach=reach)):
            let_in = await done(*[lambda database=database: store.keys(database=database)] * 3)
        assert let_in == (3 if good else 0), (identity, database)


async def test_who_is_not_the_platform_has_no_room_in_its_databases() -> None:
    gate = Gate(kinds=())
    gate.follow("micro")
    gate.rule("micro", Rules((), 1, quota_of({"store": {"records": 1}})))
    store = QuotaStore(MemoryStore(), gate)
    for _ in range(2):
        await store.write("a", b"", database="config")
        await store.write("b", b"", database="config")
    admin = Identity(id="admin", kind=Being.ADMIN)
    with use(Context(identity=admin, reach=lambda namespace: None)), pytest.raises(TooLarge):
        await store.write("c", b"", database="config")


async def test_publishes_are_counted_and_nothing_else_is() -> None:
    broker = MeteredBroker(MemoryBroker(), alone(Kind.BROKER, [0.0], burst=3))
    async with broker.subscribe("t"):
        assert await done(*[lambda: broker.publish("t", b"")] * 4) == 3
        await broker.check()
    with pytest.raises(TooManyRequests, match=r"may publish 0\.001 messages a second"):
        await broker.publish("t", b"")
    async with platform() as here:
        remote = RemoteEvents(await here.network())
        events = QuotaEvents(remote, alone(Kind.EVENTS, [0.0], burst=3))
        assert await done(*[lambda: events.publish("t", b"")] * 4) == 3
        with pytest.raises(TooManyRequests, match=r"may publish 0\.001 events a second"):
            await events.publish("t", b"")
        assert len(await events.fetch("t", "g", start="beginning", limit=9)) == 3


@asynccontextmanager
async def members(here: Here, kind: Kind, count: int = 2) -> AsyncIterator[list[Gate]]:
    """What so many members of a service count with."""
    async with AsyncExitStack() as stack:
        gates = [Gate(kinds=(kind,), doors=count) for _ in range(count)]
        for gate in gates:
            await stack.enter_async_context(Supply(gate, await here.network()))
        yield gates


async def ruled(gates: list[Gate]) -> None:
    await eventually(lambda: all(gate.rules("micro").rules for gate in gates), within=PROMPT)


async def often(operation: Callable[[], Awaitable[object]], seconds: float) -> int:
    """Somebody who never pauses but for 2 ms after a refusal; how many were let in."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            await operation()
            count += 1
            await asyncio.sleep(0)
        except TooManyRequests:
            await asyncio.sleep(0.002)
    return count


@pytest.mark.parametrize("shares", [(3, 3), (6, 0)])
async def test_two_members_let_in_one_rate(shares: tuple[int, int]) -> None:
    rate, burst, seconds = 200, 50, 2.0
    async with platform() as here, members(here, Kind.STORE) as gates:
        await here.limits.set("store", rate=rate, burst=burst)
        await ruled(gates)
        stores = [QuotaStore(here.store, gate) for gate in gates]
        begun = time.monotonic()
        counts = await asyncio.gather(
            *(
                often(lambda store=store: store.keys(database="micro"), seconds)
                for store, share in zip(stores, shares, strict=True)
                for _ in range(share)
            )
        )
        took = time.monotonic() - begun
        print(f"{sum(counts)} of {rate * took + burst:.0f} in {took:.2f} s")
        assert sum(counts) <= rate * took + burst
        assert sum(counts) >= 0.8 * (rate * seconds + burst)
        (use_,) = await here.limits.usage()
        assert (use_.kind, use_.doors) == (Kind.STORE, sum(share > 0 for share in shares))


async def test_a_limiter_that_is_away_stops_nobody() -> None:
    async with platform() as here, members(here, Kind.STORE) as gates:
        await here.limits.set("store", rate=FEW, burst=10)
        await ruled(gates)
        await here.hosts["limits"].close()
        await eventually(lambda: all(gate.stale for gate in gates), within=PROMPT)
        stores = [QuotaStore(here.store, gate) for gate in gates]
        counts = [await done(*[store.keys] * 50) for store in stores]
        assert all(counts), "each lets in its part"
        assert sum(counts) <= 2 * 10


async def test_what_is_refused_over_http_and_frames() -> None:
    """With all that the error says."""
    async with platform() as here, members(here, Kind.STORE, 1) as (gate,):
        await here.hosts["store"].close()
        await here.keep("store", face.endpoints(QuotaStore(here.store, gate)))
        await here.known("store")
        network = await here.network()
        remote = RemoteStore(network)
        async with open_door(network, gate=Gate()) as door:
            # Config's own records are counted too, and a change makes one.
            most = (await here.store.usage()).records + 2
            await here.config.set("limits.store", {"records": most})
            await eventually(lambda: gate.rules("micro").store, within=PROMPT)
            most = (await here.store.usage()).records + 2
            await here.config.set("limits.store.records", most)
            await eventually(
                lambda: gate.rules("micro").store == Quota(records=most), within=PROMPT
            )
            assert (await here.store.usage()).records == most - 1
            await remote.write("k", b"v")
            answer = await door.http.post("/store/write", json={"key": "more", "value": "v"})
            said = (
                f"namespace micro may keep {most} records in the store and keeps {most}; remove "
                "what is not needed, or have its quota raised (config limits.store)"
            )
            error = answer.json()
            assert (answer.status_code, error["code"], error["id"]) == (413, 413, "store")
            assert error["detail"] == said
            with pytest.raises(TooLarge) as large:
                await remote.write("more", b"v")
            assert (large.value.id, large.value.detail) == ("store", said)
            await here.limits.set("store", rate=FEW, burst=1)
            await ruled([gate])
            assert await done(*[lambda: remote.read("k")] * 3) == 1
            answer = await door.http.post("/store/read", json={"key": "k"})
            error = answer.json()
            assert (answer.status_code, error["code"], error["id"]) == (429, 429, "limits")
            assert error["detail"].startswith("namespace micro may do 0.001 operations a second")
            assert 0 < error["retry_after"] <= 1 / FEW
            assert int(answer.headers["retry-after"]) >= error["retry_after"]
            with pytest.raises(TooManyRequests) as many:
                await remote.read("k")
            assert 0 < many.value.retry_after <= 1 / FEW
            # The quota is as it was, and both are taken away beside each other.
            await here.limits.unset("store")
            standing = await here.limits.list()
            assert (standing.rules, standing.store and standing.store.records) == ((), most)
            await eventually(lambda: not gate.rules("micro").rules, within=PROMPT)
            assert (await remote.read("k")).value == b"v"


async def test_what_events_refuse_over_http_and_frames() -> None:
    async with platform() as here, members(here, Kind.EVENTS, 1) as (gate,):
        await here.hosts["events"].close()
        folder = here.bootstrap.run / "limited"
        async with SqliteEvents(folder) as backend, QuotaEvents(backend, gate) as events:
            await here.keep("events", events_face.endpoints(events))
            await here.known("events")
            await here.config.set("limits.events", {"events": 1})
            await eventually(lambda: gate.rules("micro").events, within=PROMPT)
            network = await here.network()
            remote = RemoteEvents(network)
            first = await remote.publish("t", b"v", id="x")
            async with open_door(network, gate=Gate()) as door:
                request = {"topic": "t", "payload": "v"}
                answer = await door.http.post("/events/publish", json=request)
                error = answer.json()
                assert (answer.status_code, error["code"], error["id"]) == (413, 413, "events")
                assert error["detail"].startswith("namespace micro may keep 1 events in events")
                with pytest.raises(TooLarge, match=error["detail"].split(";")[0]):
                    await remote.publish("t", b"v")
                assert (await remote.publish("t", b"v", id="x")).sequence == first.sequence
                usage = (await door.http.post("/events/usage")).json()
                assert usage == {"topics": 1, "events": 1, "bytes": 1, "group_bytes": 0}
                await here.limits.set("events", rate=FEW, burst=1)
                await ruled([gate])
                assert await done(*[lambda: remote.publish("t", b"v", id="x")] * 3) == 1
                answer = await door.http.post("/events/publish", json=request)
                error = answer.json()
                assert (answer.status_code, error["code"], error["id"]) == (429, 429, "limits")
                assert 0 < error["retry_after"] <= 1 / FEW
                await here.hosts["events"].close()


@pytest.mark.parametrize("kind", BACKENDS)
async def test_what_cannot_be_set(kind: Kind) -> None:
    async with platform() as here:
        with pytest.raises(BadRequest, match=f"concurrency: what is done in {kind} has a rate"):
            await here.limits.set(kind, concurrency=5)
        with pytest.raises(BadRequest, match=f"namespace in {kind} has no name"):
            await here.limits.set(kind, "x", rate=5)
        assert (await here.limits.set(kind, rate=5)).limit.rate == 5
        assert [rule.kind for rule in (await here.limits.list()).rules] == [kind]
        # No door counts it.
        gate = Gate()
        async with Supply(gate, await here.network()):
            await ruled([gate])
            assert not gate.ruled.is_set()
