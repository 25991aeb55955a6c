"""Lives of the runtime: what one leaves, the next takes up. Nothing that should run is forgotten,
nothing that should not is kept."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from micro_ray.errors import NotFound, Unavailable
from micro_ray.runtime import State, Workload
from micro_ray.runtime.keeper import Patience
from micro_ray.runtime.reconcile import Reconciler
from micro_ray.settings import Runtime as RuntimeSettings
from micro_ray.store import Record, Store
from micro_ray.store.memory import MemoryStore
from micro_ray.store.sqlite import SqliteStore
from tests.fixtures.processes import alive
from tests.fixtures.wait import eventually
from tests.unit.runtime.conftest import Shop, command, service_source, sh, until

SLEEP = command("sleep", "1000")


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "db")
    async with opened as store:
        yield store


async def test_the_runtime_is_killed(shop: Shop, store: Store) -> None:
    """Its replicas go on; the next life takes over the same processes, and keeps them."""
    async with shop.runtime(store=store) as runtime:
        digest = await runtime.upload(shop.pack(service_source("w")))
        await runtime.create(Workload(name="w", digest=digest, driver="process", replicas=2))
        await runtime.create(replace(SLEEP, name="other", namespace="tenant"))
        before = await until(runtime, "w", State.RUNNING)
        await until(runtime, "other", State.RUNNING, "tenant")
    await shop.here.known("w")
    assert (await shop.here.client.call("w"))["said"] == "one"
    async with shop.runtime(store=store) as runtime:
        (after,) = await runtime.read("w")
        assert after.state is State.RUNNING
        assert {(r.id, r.pid) for r in after.replicas} == {(r.id, r.pid) for r in before.replicas}
        assert after.workload == before.workload
        await until(runtime, "other", State.RUNNING, "tenant")
        os.kill(after.replicas[0].pid, signal.SIGKILL)
        await eventually(lambda: _replaced(runtime, after.replicas[0].id))
        await until(runtime, "w", State.RUNNING)
        await runtime.delete("w")
        await runtime.delete("other", "tenant")
    assert shop.processes() == []


async def _replaced(runtime: Reconciler, id: str) -> bool:
    (status,) = await runtime.read("w")
    return status.ready == 2 and id not in {r.id for r in status.replicas}


async def test_everything_is_killed(shop: Shop, store: Store) -> None:
    """Only the store is left: all that should run runs again, as it was desired last."""
    async with shop.runtime(store=store) as runtime:
        for number in range(3):
            await runtime.create(replace(SLEEP, name=f"w{number}"))
        await runtime.create(replace(SLEEP, name="gone"))
        await runtime.create(replace(SLEEP, name="asleep", replicas=0))
        await until(runtime, "w2", State.RUNNING)
        await runtime.update("w1", "micro", {"replicas": 2, "metadata": {"k": "v"}})
        await runtime.delete("gone")
    for pid in shop.processes():
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not shop.processes())
    async with shop.runtime(store=store) as runtime:
        assert [s.workload.name for s in await runtime.read()] == ["asleep", "w0", "w1", "w2"]
        for number in range(3):
            await until(runtime, f"w{number}", State.RUNNING)
        (status,) = await runtime.read("w1")
        assert (status.ready, status.workload.metadata, status.workload.generation) == (
            2, {"k": "v"}, 2,
        )  # fmt: skip
        await until(runtime, "asleep", State.STOPPED)
        await runtime.halt(0)


async def test_one_name_in_two_namespaces(shop: Shop) -> None:
    """Each gets its own back."""
    pids = {}
    async with shop.runtime() as runtime:
        for namespace in ("a", "b"):
            await runtime.create(replace(SLEEP, namespace=namespace))
            pids[namespace] = (await until(runtime, "w", State.RUNNING, namespace)).replicas[0].pid
    async with shop.runtime() as runtime:
        for namespace, pid in pids.items():
            (status,) = await runtime.read("w", namespace)
            assert [replica.pid for replica in status.replicas] == [pid]
        await runtime.delete("w", "a")
        assert alive(pids["b"])
        await runtime.delete("w", "b")


async def test_halted(shop: Shop) -> None:
    """The platform stops: replicas end well, what is desired stays, and nothing new begins."""
    async with shop.runtime() as runtime:
        await runtime.create(sh("trap 'echo ended; exit 0' TERM; while true; do sleep 0.02; done"))
        await runtime.create(replace(SLEEP, name="other", replicas=3))
        for name in ("w", "other"):
            await until(runtime, name, State.RUNNING)
        await runtime.halt(5)
        assert shop.processes() == []
        assert "ended" in shop.log()
        with pytest.raises(Unavailable, match="the platform is being stopped"):
            await runtime.create(replace(SLEEP, name="late"))
    assert await shop.here.store.keys(table="runtime") == [
        "workload/micro/other",
        "workload/micro/w",
    ]


async def test_deleted_while_no_runtime_was_there(shop: Shop) -> None:
    """A replica of which the store knows nothing is stopped, in good order."""
    async with shop.runtime() as runtime:
        await runtime.create(sh("trap 'echo ended; exit 0' TERM; while true; do sleep 0.02; done"))
        await until(runtime, "w", State.RUNNING)
    await shop.here.store.delete("workload/micro/w", table="runtime")
    async with shop.runtime() as runtime:
        assert await runtime.read() == []
        await eventually(lambda: shop.left() == set())
        assert "ended" in shop.log()


async def test_killed_while_it_deleted(shop: Shop) -> None:
    """What was to go goes in the next life."""
    async with shop.runtime() as runtime:
        await runtime.create(sh("trap '' TERM; while true; do sleep 0.02; done"))
        await until(runtime, "w", State.RUNNING)
        deleting = asyncio.create_task(runtime.delete("w"))

        async def stopping() -> bool:
            return (await runtime.read("w"))[0].state is State.STOPPING

        await eventually(stopping)
        deleting.cancel()
    async with shop.runtime(patience=Patience(drain=0)) as runtime:
        assert await runtime.read() == []
        await eventually(lambda: shop.left() == set())


async def test_records_that_mean_nothing(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """They are passed over and said in the log; the others run."""
    store = shop.here.store
    async with shop.runtime() as runtime:
        await runtime.create(SLEEP)
        await until(runtime, "w", State.RUNNING)
    good = (await store.read("workload/micro/w", table="runtime")).value
    for key, value in {
        "workload/micro/torn": b'{"workload": {"na',
        "workload/micro/else": b'{"fruit": "apple"}',
        "workload/micro/deep": b"[" * 100_000,
        "workload/micro/empty": b"",
        "workload/micro/types": good.replace(b'"replicas":1', b'"replicas":"x"'),
        "workload/micro/moved": good,
        "workload/../w": good.replace(b'"namespace":"micro"', b'"namespace":".."'),
        "workload/older": good,
    }.items():
        await store.write(key, value, table="runtime")
    async with shop.runtime() as runtime:
        assert [s.workload.name for s in await runtime.read()] == ["w"]
        await runtime.delete("w")
    said = [r.getMessage() for r in caplog.records if "passed over" in r.getMessage()]
    assert len(said) == 8
    assert any("workload/micro/torn" in line for line in said)
    assert len(await store.keys(table="runtime")) == 8, "they are not ours to remove"


async def test_more_workloads_than_one_answer_holds(shop: Shop) -> None:
    """Two hundred of them, with all that one may carry: more than the store gives at once."""
    env = {f"V{n}": "x" * 300 for n in range(200)}
    async with shop.runtime() as runtime:
        for number in range(200):
            await runtime.create(replace(SLEEP, name=f"w{number:03}", replicas=0, env=env))
    async with shop.runtime() as runtime:
        assert len(await runtime.read()) == 200


class Unreachable(MemoryStore):
    """A store in front of which somebody stands."""

    def __init__(self) -> None:
        super().__init__()
        self.reachable = False
        self.asked = 0

    async def query(self, **options: object) -> list[Record]:  # type: ignore[override]
        self.asked += 1
        if not self.reachable:
            raise Unavailable("store", "nobody listens")
        return await super().query(**options)  # type: ignore[arg-type]


async def test_the_store_comes_later(shop: Shop) -> None:
    """At the start of everything it is not there yet: what is asked meanwhile waits for it."""
    store = Unreachable()
    async with shop.runtime(store=store) as runtime:
        creating = asyncio.create_task(runtime.create(replace(SLEEP, replicas=0)))
        await eventually(lambda: store.asked >= 2)
        assert not creating.done()
        store.reachable = True
        await creating
        assert len(await runtime.read()) == 1


async def test_the_store_does_not_come(shop: Shop) -> None:
    """Who asks is told so in time, and it says that trying again is no harm."""
    settings = RuntimeSettings(start_timeout=0.2)
    async with shop.runtime(store=Unreachable(), settings=settings) as runtime:
        for attempt in (
            runtime.read(),
            runtime.create(SLEEP),
            runtime.delete("w"),
            anext(runtime.logs("w")),
        ):
            with pytest.raises(Unavailable, match="the store does not answer") as caught:
                await attempt
            assert caught.value.retry_after == 1.0


async def test_a_write_that_fails_changes_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not recorded does not run: after a restart nobody would know of it."""
    async with shop.runtime() as runtime:
        await runtime.create(SLEEP)
        before = await until(runtime, "w", State.RUNNING)

        async def full(*args: object, **options: object) -> None:
            raise Unavailable("store", "the disk is full")

        monkeypatch.setattr(shop.here.store, "transact", full)
        for attempt in (
            runtime.create(replace(SLEEP, name="new")),
            runtime.update("w", "micro", {"env": {"A": "b"}}),
            runtime.delete("w"),
        ):
            with pytest.raises(Unavailable, match="the disk is full"):
                await attempt
        assert await runtime.read() == [before]
        monkeypatch.undo()
        await runtime.create(replace(SLEEP, name="new"))
        await runtime.delete("new")
        await runtime.delete("w")


async def test_a_driver_that_is_not_there(shop: Shop) -> None:
    """A workload of another machine's, or of an older life with more drivers: it says so."""
    await _record(shop, replace(SLEEP, driver="kubernetes"))
    async with shop.runtime() as runtime:
        status = await until(runtime, "w", State.ERROR)
        assert status.error == "driver 'kubernetes' is not there; there is process"
        await runtime.delete("w")
        assert await runtime.read() == []


async def _record(shop: Shop, workload: Workload) -> None:
    """Desired by an earlier life."""
    from micro_ray.runtime.desired import Desired, Records

    await Records(shop.here.store, "micro").write(Desired(workload=workload))


async def test_what_a_keeper_finds_out_is_recorded(shop: Shop) -> None:
    """That an update failed, and that one is proven, outlive the runtime."""
    patience = Patience(start=20, drain=1, healthy=0.3, resync=0.05, backoff=(0.1, 1))
    async with shop.runtime(patience=patience) as runtime:
        await runtime.create(SLEEP)
        before = await until(runtime, "w", State.RUNNING)
        store = shop.here.store

        async def proven() -> bool:
            record = await store.read("workload/micro/w", table="runtime")
            return b'"proven":true' in record.value and b'"previous":null' in record.value

        await eventually(proven)
        await runtime.update("w", "micro", {"command": ["no-such-command"]})
        await until(runtime, "w", State.ERROR)

        async def failed() -> bool:
            record = await store.read("workload/micro/w", table="runtime")
            return b"cannot run 'no-such-command'" in record.value

        await eventually(failed)
    # Everything is killed: what had served serves again, not what had failed.
    for pid in shop.processes():
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not shop.processes())
    async with shop.runtime(patience=patience) as runtime:

        async def back() -> bool:
            (status,) = await runtime.read("w")
            return any(
                r.state is State.RUNNING and psutil.Process(r.pid).cmdline() == ["sleep", "1000"]
                for r in status.replicas
            )

        await eventually(back)
        (status,) = await runtime.read("w")
        assert status.state is State.ERROR
        assert "cannot run 'no-such-command'" in status.error
        assert status.workload.generation == 2
        assert not alive(before.replicas[0].pid)
        await runtime.delete("w")


async def test_tidying(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What workloads name is kept, also what an update may go back to; the rest goes in its time,
    as do the logs of workloads that were deleted long ago."""
    now = 1_000.0
    async with shop.runtime(clock=lambda: now) as runtime:
        kept = await runtime.upload(shop.pack(service_source("w")))
        broken = await runtime.upload(shop.pack("1/0"))
        unused = await runtime.upload(shop.pack("2/0"))
        await runtime.create(Workload(name="w", digest=kept, driver="process"))
        await runtime.create(sh("echo hello; exec sleep 1000", name="short"))
        await until(runtime, "w", State.RUNNING)
        await until(runtime, "short", State.RUNNING)
        await runtime.delete("short")
        await runtime.update("w", "micro", {"digest": broken})
        await until(runtime, "w", State.ERROR)
        await runtime.tidy()
        now += 3_601
        await runtime.tidy()
        keys = {blob.key.split("/")[1] for blob in await shop.here.store.blobs()}
        assert keys == {kept, broken}
        assert unused not in os.listdir(shop.state / "sources" / "micro")
        assert [line.text async for line in runtime.logs("short")] == ["hello"]
        monkeypatch.setattr("micro_ray.runtime.reconcile.LOGS_KEPT", -1.0)
        await runtime.tidy()
        with pytest.raises(NotFound):
            await anext(runtime.logs("short"))
        assert [line async for line in runtime.logs("w")] != []
        await runtime.halt(0)
