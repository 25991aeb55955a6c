"""Replacing, scaling and losing replicas while they are called all the time, with real processes
and real callers: no call is lost to a change that was asked for."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from micro_ray.errors import MicroError
from micro_ray.runtime import State, Workload
from micro_ray.runtime.keeper import Patience
from micro_ray.runtime.reconcile import Reconciler
from micro_ray.sdk.testing import Here
from tests.fixtures.wait import eventually
from tests.unit.runtime.conftest import Shop, service_source, until

#: Takes a little while, so that there are always calls in flight.
SLOWLY = """
@service.endpoint
async def slowly() -> dict[str, str]:
    import asyncio
    await asyncio.sleep(0.02)
    return {"said": "SAID"}
"""


@dataclass
class Calls:
    """What callers got."""

    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[MicroError] = field(default_factory=list)

    async def more(self, count: int, said: str = "") -> None:
        """Wait for so many further answers."""
        before = self._count(said)
        await eventually(lambda: self._count(said) >= before + count)

    def _count(self, said: str) -> int:
        return self.answers[said] if said else self.answers.total()


@asynccontextmanager
async def called(here: Here, callers: int = 8) -> AsyncIterator[Calls]:
    """The service ``w`` is called without a break, each call once, from here on."""
    await here.known("w")
    calls = Calls()

    async def call() -> None:
        while True:
            try:
                answer = await here.client.call("w", "slowly", timeout=5)
                calls.answers[answer["said"]] += 1
            except MicroError as error:
                calls.failures.append(error)

    tasks = [asyncio.create_task(call()) for _ in range(callers)]
    try:
        await calls.more(20)
        yield calls
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def source(shop: Shop, said: str, more: str = "") -> bytes:
    return shop.pack(service_source("w", said, SLOWLY.replace("SAID", said) + more))


async def begin(runtime: Reconciler, shop: Shop, replicas: int) -> None:
    digest = await runtime.upload(source(shop, "one"))
    await runtime.create(Workload(name="w", digest=digest, driver="process", replicas=replicas))
    await until(runtime, "w", State.RUNNING)


async def update(runtime: Reconciler, archive: bytes) -> None:
    await runtime.update("w", "micro", {"digest": await runtime.upload(archive)})


async def test_an_update_loses_no_call(runtime: Reconciler, shop: Shop) -> None:
    await begin(runtime, shop, 2)
    async with called(shop.here) as calls:
        await update(runtime, source(shop, "two"))
        await until(runtime, "w", State.RUNNING)
        # The old ones finish what they serve; the new ones alone answer in the end.
        await eventually(lambda: _alone(runtime))
        await calls.more(20, "two")
        old = calls.answers["one"]
        await calls.more(20)
        assert calls.answers["one"] == old
    assert calls.failures == []


async def _alone(runtime: Reconciler) -> bool:
    (status,) = await runtime.read("w")
    return len(status.replicas) == status.ready == 2


async def test_an_update_of_the_only_replica_loses_no_call(runtime: Reconciler, shop: Shop) -> None:
    await begin(runtime, shop, 1)
    async with called(shop.here) as calls:
        await update(runtime, source(shop, "two"))
        await calls.more(20, "two")
    assert calls.failures == []


async def test_scaling_loses_no_call(runtime: Reconciler, shop: Shop) -> None:
    await begin(runtime, shop, 1)
    async with called(shop.here) as calls:
        for replicas in (3, 1):
            await runtime.update("w", "micro", {"replicas": replicas})
            await eventually(lambda replicas=replicas: _count(runtime, replicas), within=15)
            await calls.more(20)
    assert calls.failures == []


async def _count(runtime: Reconciler, replicas: int) -> bool:
    (status,) = await runtime.read("w")
    return len(status.replicas) == status.ready == replicas


async def test_a_broken_update_loses_no_call(runtime: Reconciler, shop: Shop) -> None:
    """It does not import; the same processes go on serving; the error is the user's traceback."""
    await begin(runtime, shop, 1)
    (before,) = await runtime.read("w")
    async with called(shop.here) as calls:
        await update(runtime, shop.pack("import nowhere_to_be_found\n"))
        status = await until(runtime, "w", State.ERROR)
        await calls.more(20, "one")
    assert calls.failures == []
    assert "ModuleNotFoundError: No module named 'nowhere_to_be_found'" in status.error
    assert [r.pid for r in status.replicas] == [r.pid for r in before.replicas]


async def test_an_unhealthy_update_loses_no_call(runtime: Reconciler, shop: Shop) -> None:
    """It registers, and says that it is not well: the old one is not given up for it, until it says
    that it is."""
    await begin(runtime, shop, 1)
    cure = shop.state / "cure"
    check = f"""
@service.health
async def medicine() -> None:
    if not os.path.exists({str(cure)!r}):
        raise RuntimeError("no medicine")
"""
    (before,) = await runtime.read("w")
    async with called(shop.here) as calls:
        await update(runtime, source(shop, "two", check))
        await eventually(lambda: calls.answers["two"], within=10)  # it is found, and answers
        await calls.more(30)
        (status,) = await runtime.read("w")
        assert status.state is State.UPDATING
        assert before.replicas[0] in status.replicas
        cure.touch()
        await until(runtime, "w", State.RUNNING)
        await eventually(lambda: _count(runtime, 1))
        await calls.more(20, "two")
    assert calls.failures == []


async def test_an_update_that_hangs_loses_no_call(shop: Shop) -> None:
    """Its start hook never returns: it is given up in its time, and the old one goes on."""
    hook = """
@service.on_start
async def wait() -> None:
    import asyncio
    print("waiting for a database", flush=True)
    await asyncio.Event().wait()
"""
    patience = Patience(start=1.2, drain=2, resync=0.2)
    async with shop.runtime(patience=patience) as runtime:
        await begin(runtime, shop, 1)
        async with called(shop.here) as calls:
            await update(runtime, source(shop, "two", hook))
            status = await until(runtime, "w", State.ERROR)
            await calls.more(20, "one")
        assert calls.failures == []
        assert status.error == "did not come up within 1.2 s; its log may say why"
        assert "waiting for a database" in shop.log()
        assert len(status.replicas) == 1
        await runtime.halt(1)


async def test_a_replica_is_killed(runtime: Reconciler, shop: Shop) -> None:
    """Calls in flight on it are told so, as errors of a broken node; the others serve on, and it is
    replaced. With a caller that may try again, no call fails."""
    await begin(runtime, shop, 2)

    async def patient() -> None:
        while True:
            answer = await shop.here.client.call("w", "slowly", timeout=5, idempotent=True)
            assert answer == {"said": "one"}

    async with called(shop.here) as calls:
        retrying = asyncio.create_task(patient())
        (status,) = await runtime.read("w")
        victim = status.replicas[0]
        os.kill(victim.pid, signal.SIGKILL)
        await calls.more(50)
        await eventually(lambda: _count(runtime, 2), within=15)
        (status,) = await runtime.read("w")
        assert victim.id not in {r.id for r in status.replicas}
        assert status.restarts == 1
        await calls.more(20)
        assert not retrying.done()
        retrying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await retrying
    assert {error.code for error in calls.failures} <= {502}
    assert len(calls.failures) <= 8, "more than were in flight"


async def test_the_runtime_is_killed_under_calls(shop: Shop) -> None:
    """Nobody notices: it is on no call's path."""
    async with shop.runtime() as runtime:
        await begin(runtime, shop, 1)
    async with called(shop.here) as calls:
        for _ in range(3):
            async with shop.runtime() as runtime:
                await until(runtime, "w", State.RUNNING)
                await calls.more(10)
    assert calls.failures == []
    async with shop.runtime() as runtime:
        await runtime.delete("w")
