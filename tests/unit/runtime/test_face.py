"""The runtime over frames: the same verbs, the same errors, from another process as it were."""

from __future__ import annotations

import asyncio
import gc
import os
import types
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from micro_ray import Service
from micro_ray.errors import BadRequest, Conflict, NotFound, TooLarge, Unavailable
from micro_ray.runtime import Replica, Runtime, State, Workload
from micro_ray.runtime.reconcile import Reconciler
from micro_ray.sdk.testing import Here
from micro_ray.settings import Runtime as RuntimeSettings
from micro_ray.wire import runtime as face
from micro_ray.wire.runtime import RemoteRuntime
from tests.fixtures.wait import eventually
from tests.unit.runtime.conftest import Shop, command, service_source, sh, until

SLEEP = command("sleep", "1000")


@pytest.fixture
async def remote(shop: Shop, runtime: Reconciler) -> RemoteRuntime:
    await shop.here.host("runtime", face.endpoints(runtime), socket_name="runtime-0")
    await shop.here.known("runtime")
    return RemoteRuntime(await shop.here.network())


async def test_it_is_a_runtime(remote: RemoteRuntime, shop: Shop) -> None:
    """From the upload to the end, with values that are equal on both sides."""
    runtime: Runtime = remote
    digest = await runtime.upload(shop.pack(service_source("w")))
    created = await runtime.create(
        Workload(name="w", digest=digest, driver="process", env={"A": "b"}, cpu=0.25)
    )
    assert created.workload.env == {"A": "b"}
    told = [step async for step in runtime.progress("w")]
    assert told[-1].state is State.RUNNING
    (status,) = await runtime.read("w")
    assert (status.ready, status.workload.cpu) == (1, 0.25)
    assert isinstance(status.replicas[0], Replica)
    updated = await runtime.update("w", "micro", {"env": {"A": "c"}, "command": []})
    assert updated.workload.generation == 2
    await until(runtime, "w", State.RUNNING)
    lines = [line async for line in runtime.logs("w", tail=1000)]
    assert all(line.replica.startswith("w-") for line in lines)
    assert any("serving as" in line.text for line in lines)
    assert [s.workload.name for s in await runtime.read()] == ["w"]
    await runtime.delete("w")
    assert await runtime.read() == []


async def test_whether_a_replica_lives(remote: RemoteRuntime, shop: Shop) -> None:
    """While it is being started, too; of one that has ended, or is none, no more."""
    check = face.lives(shop.network)
    await eventually(lambda: shop.network.table.known("micro", "runtime"))
    await remote.create(SLEEP)
    await until(remote, "w", State.RUNNING)
    (status,) = await remote.read("w")
    (replica,) = status.replicas
    assert await check("micro", replica.id)
    for namespace, id in (
        ("acme", replica.id), ("micro", "w-000000000000"), ("micro", "x-1"), ("micro", "../x-1"),
        ("micro", "x"),
    ):  # fmt: skip
        assert not await check(namespace, id)
    await remote.delete("w")
    assert not await check("micro", replica.id)


async def test_whether_a_replica_lives_cannot_be_told_without_a_runtime(shop: Shop) -> None:
    assert await face.lives(shop.network)("micro", "w-1")


async def test_errors_keep_their_types(remote: RemoteRuntime) -> None:
    await remote.create(SLEEP)
    for attempt, kind, said in (
        (remote.create(SLEEP), Conflict, "w runs already"),
        (remote.read("x"), NotFound, "no workload 'x'; there is w"),
        (remote.delete("x"), NotFound, "no workload 'x'"),
        (remote.update("w", "micro", {"cpu": "much"}), BadRequest, "cpu: Expected `float`"),
        (remote.update("w", "micro", {"name": "y"}), BadRequest, "name cannot be updated"),
        (remote.create(replace(SLEEP, replicas=-1)), BadRequest, "replicas -1"),
        (remote.create(replace(SLEEP, name="../x")), BadRequest, "name"),
        (anext(remote.logs("x")), NotFound, "no workload 'x'"),
        (anext(remote.logs("w", tail=-1)), BadRequest, "tail -1"),
        (anext(remote.progress("x")), NotFound, "no workload 'x'"),
        (remote.upload(b"nonsense"), BadRequest, "not a gzipped tar"),
    ):
        with pytest.raises(kind, match=said):
            await attempt


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{}", "name"),
        (b'{"name": 3}', "name"),
        (b'{"name": "w", "replicas": "x"}', "replicas"),
        (b'{"name": "w", "env": []}', "env"),
        (b'{"name": "w", "command": "sleep 1"}', "command"),
        (b'{"name": "w"', "cannot be read|truncated"),
        (b"[]", "array"),
    ],
)
async def test_bad_bodies(remote: RemoteRuntime, shop: Shop, body: bytes, said: str) -> None:
    network = await shop.here.network()
    with pytest.raises(BadRequest, match=said):
        await network.call("runtime", "Runtime.Create", body)
    assert await remote.read() == []


async def test_the_callers_namespace_counts(shop: Shop, runtime: Reconciler) -> None:
    """Not what the workload says of itself: a tenant must not run things as another."""
    await shop.here.host("runtime", face.endpoints(runtime), socket_name="runtime-0")
    await shop.here.known("runtime")
    network = await shop.here.network()
    await network.call(
        "runtime",
        "Runtime.Create",
        b'{"name": "w", "namespace": "victim", "command": ["sleep", "9"], "driver": "process"}',
        metadata={"micro-namespace": "tenant"},
    )
    assert [s.workload.namespace for s in await runtime.read(namespace="tenant")] == ["tenant"]
    assert await runtime.read(namespace="victim") == []
    with pytest.raises(BadRequest, match="namespace"):
        await network.call("runtime", "Runtime.Read", b"{}", metadata={"micro-namespace": "../x"})


async def test_large_sources(shop: Shop, remote: RemoteRuntime) -> None:
    """Larger than a message of frames, in pieces of any size."""
    blob = os.urandom(3 * 2**20).hex()
    archive = shop.pack("1", data=blob)
    assert len(archive) > 2**20

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(archive), 999_983):
            yield archive[start : start + 999_983]

    assert await remote.upload(archive) == await remote.upload(pieces())


async def test_a_source_over_the_limit_is_refused_early(shop: Shop) -> None:
    """The rest is not waited for, and nothing is kept."""
    settings = RuntimeSettings(max_source=500_000)
    async with shop.runtime(settings=settings) as runtime:
        await shop.here.host("runtime", face.endpoints(runtime), socket_name="runtime-0")
        await shop.here.known("runtime")
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 1
                yield os.urandom(100_000)

        remote = RemoteRuntime(await shop.here.network())
        with pytest.raises(TooLarge, match="source over 500000 bytes"):
            await remote.upload(endless())
        assert sent < 40
        assert await shop.here.store.blobs() == []


async def test_an_upload_that_breaks(remote: RemoteRuntime, shop: Shop) -> None:
    """The error of who makes it is his own."""

    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await remote.upload(breaks())
    assert await shop.here.store.blobs() == []


async def test_who_follows_goes_away(
    remote: RemoteRuntime, runtime: Reconciler, shop: Shop
) -> None:
    """Then nothing follows any more on the other side."""
    await remote.create(sh("echo hello; exec sleep 1000"))
    await until(remote, "w", State.RUNNING)
    for follow in (
        remote.logs("w", follow=True),
        remote.logs("w", tail=0, follow=True),
    ):
        async with aclosing(follow) as lines:
            reading = asyncio.ensure_future(anext(lines))
            await eventually(lambda: _followers() == 1)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        await eventually(lambda: _followers() == 0)


def _followers() -> int:
    gc.collect()
    # By type: other objects may import something when they are asked for an attribute.
    running = [o for o in gc.get_objects() if isinstance(o, types.AsyncGeneratorType)]
    return sum(o.__qualname__ == "Reader.follow" and o.ag_frame is not None for o in running)


async def test_progress_and_logs_while_it_is_deleted(remote: RemoteRuntime) -> None:
    await remote.create(sh("trap 'sleep 0.3; exit 0' TERM; while true; do sleep 0.02; done"))
    await until(remote, "w", State.RUNNING)
    deleting = asyncio.create_task(remote.delete("w"))

    async def stopping() -> bool:
        return (await remote.read("w"))[0].state is State.STOPPING

    await eventually(stopping)
    told = [step async for step in remote.progress("w")]
    assert told[-1].state is State.STOPPING
    await deleting


# -- the gate --------------------------------------------------------------------------------------


async def test_the_gate(here: Here) -> None:
    """In the route table, and healthy by its own word; a command need not be there."""
    network = await here.network()
    check = face.gate(network)
    workload = Workload(name="w", digest="0" * 64, driver="process")
    replica = Replica(
        id="node-1", namespace="micro", workload="w", generation=1, state=State.RUNNING
    )
    with pytest.raises(Unavailable, match="it is not in the route table"):
        await check(replica, workload)
    await check(replica, SLEEP)

    service, well = Service("named-otherwise"), False

    @service.health
    async def medicine() -> None:
        if not well:
            raise RuntimeError("no medicine")

    await here.serve(service, "node-1")
    await eventually(lambda: network.table.has("micro", "node-1"))
    for kind in (workload, SLEEP):
        with pytest.raises(Unavailable, match="no medicine"):
            await check(replica, kind)
    well = True
    await check(replica, workload)
    with pytest.raises(Unavailable):
        await check(replace(replica, namespace="other"), workload)
