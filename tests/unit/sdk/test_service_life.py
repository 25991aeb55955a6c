"""A service starts, serves, stops: in order, once, and whole."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

import pytest

from micro_ray import Service
from micro_ray.errors import BadGateway, BadRequest, Cancelled, Unavailable
from micro_ray.sdk import service as service_module
from micro_ray.sdk.testing import Here
from micro_ray.wire.host import LEAVING
from tests.fixtures.wait import eventually


def hooked(*, fails: str = "") -> tuple[Service, list[str]]:
    """A service with two hooks of each kind, and what they have told."""
    service, told = Service("w"), list[str]()

    def hook(kind: str, number: int) -> Any:
        async def run() -> None:
            told.append(f"{kind} {number}")
            if fails == f"{kind} {number}":
                raise LookupError(f"{kind} {number} failed")

        return getattr(service, f"on_{kind}")(run)

    for number in (1, 2):
        hook("start", number)
        hook("stop", number)

    @service.endpoint
    async def call() -> str:
        return "here"

    return service, told


async def test_hooks_in_order(here: Here) -> None:
    """Start hooks as they were given and before anybody finds the service; stop hooks the other way
    round and after the last call."""
    service, told = hooked()
    release = asyncio.Event()

    @service.endpoint
    async def slow() -> str:
        await release.wait()
        told.append("last call")
        return "done"

    @service.on_start
    async def alone() -> None:
        assert "w" not in await service.client.services()

    await here.serve(service)
    assert told == ["start 1", "start 2"]
    calling = asyncio.create_task(here.client.call("w", "slow"))
    await eventually(lambda: service.in_flight == 1)
    stopping = asyncio.create_task(service.stop())
    await eventually(lambda: _gone(here, "w"))
    release.set()
    assert await calling == "done"
    await stopping
    assert told == ["start 1", "start 2", "last call", "stop 2", "stop 1"]
    assert service.in_flight == 0


async def _gone(here: Here, service: str) -> bool:
    return not here.client.table.lookup("micro", service)


@pytest.mark.parametrize("number", [1, 2])
async def test_a_start_hook_that_raises(here: Here, number: int) -> None:
    """Nobody finds the service, no later hook runs, nothing is left; it can be tried again."""
    service, told = hooked(fails=f"start {number}")
    before = set(os.listdir(here.bootstrap.run))
    with pytest.raises(LookupError, match=f"start {number} failed"):
        await service.start(here.bootstrap)
    assert told == ["start 1", "start 2"][:number]
    assert set(os.listdir(here.bootstrap.run)) == before
    assert "w" not in await here.client.services()
    with pytest.raises(Unavailable):
        _ = service.client
    with pytest.raises(LookupError):
        await service.start(here.bootstrap)


@pytest.mark.parametrize("number", [1, 2])
async def test_a_stop_hook_that_raises(here: Here, number: int) -> None:
    """It is raised once the others have run and everything is closed."""
    service, told = hooked(fails=f"stop {number}")
    await service.start(here.bootstrap, "node")
    with pytest.raises(LookupError, match=f"stop {number} failed"):
        await service.stop()
    assert told[2:] == ["stop 2", "stop 1"]
    assert not (here.bootstrap.run / "node.sock").exists()
    await service.stop()
    assert told[2:] == ["stop 2", "stop 1"]


async def test_the_client_in_hooks(here: Here) -> None:
    """It is there from the first to the last."""
    other = Service("other")

    @other.endpoint
    async def call() -> str:
        return "other"

    await here.serve(other)
    service, answers = Service("w"), list[str]()

    @service.on_start
    async def begin() -> None:
        answers.append(await service.client.call("other"))
        await service.store.write("began", b"yes")

    @service.on_stop
    async def end() -> None:
        answers.append(await service.client.call("other"))
        answers.append((await service.store.read("began")).value.decode())

    await here.serve(service)
    await service.stop()
    assert answers == ["other", "other", "yes"]


async def test_started_twice(here: Here) -> None:
    """Also at the same moment: one of them is, and it serves."""
    service, told = hooked()
    first = asyncio.create_task(here.serve(service))
    await asyncio.sleep(0)
    with pytest.raises(BadRequest, match="w: the service has been started already"):
        await service.start(here.bootstrap)
    await first
    with pytest.raises(BadRequest, match="started already"):
        await service.start(here.bootstrap)
    assert await here.client.call("w") == "here"
    assert told == ["start 1", "start 2"]


async def test_started_again(here: Here) -> None:
    """After a stop it begins anew: hooks, client, another node."""
    service, told = hooked()
    nodes = set()
    for _ in range(3):
        await service.start(here.bootstrap)
        await here.known("w")
        (route,) = here.client.table.lookup("micro", "w")
        nodes.add(route.id)
        assert await here.client.call("w") == "here"
        await service.stop()
        await eventually(lambda: _gone(here, "w"))
    assert len(nodes) == 3
    assert told == ["start 1", "start 2", "stop 2", "stop 1"] * 3


async def test_stopped_twice_at_once(here: Here) -> None:
    """Both return when it has stopped, and the hooks run once."""
    service, told = hooked()
    release = asyncio.Event()

    @service.on_stop
    async def slow() -> None:
        await release.wait()

    await service.start(here.bootstrap)
    first, second = (asyncio.create_task(service.stop()) for _ in range(2))
    await eventually(lambda: _gone(here, "w"))
    assert not first.done()
    assert not second.done()
    release.set()
    await asyncio.gather(first, second)
    assert told[2:] == ["stop 2", "stop 1"]
    await service.stop()


async def test_stopped_before_it_has_started(here: Here) -> None:
    service, _ = hooked()
    await service.stop()
    await here.serve(service)
    assert await here.client.call("w") == "here"


async def test_stopped_while_it_starts(here: Here) -> None:
    """The start is given up, and says so; who waited for it is not cancelled himself."""
    service, hung = Service("w"), asyncio.Event()

    @service.on_start
    async def hang() -> None:
        hung.set()
        await asyncio.Event().wait()

    starting = asyncio.create_task(service.start(here.bootstrap))
    await hung.wait()
    await service.stop()
    with pytest.raises(Unavailable, match="it was stopped while it started"):
        await starting
    assert not starting.cancelled()


async def test_a_start_that_is_cancelled(here: Here) -> None:
    service, told = hooked()

    @service.on_start
    async def hang() -> None:
        told.append("hangs")
        await asyncio.Event().wait()

    starting = asyncio.create_task(service.start(here.bootstrap))
    await eventually(lambda: "hangs" in told)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    with pytest.raises(Unavailable):
        _ = service.client


async def test_no_registry(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, and then said where it was looked for and what to do."""
    monkeypatch.setattr(service_module, "REGISTER", 0.2)
    service, told = hooked()
    nowhere = replace(here.bootstrap, registry=(f"unix:{here.bootstrap.run}/nobody.sock",))
    with pytest.raises(Unavailable, match=r"no registry answers at unix:.*nobody\.sock; start the"):
        await service.start(nowhere, "lonely")
    assert told == ["start 1", "start 2", "stop 2", "stop 1"]
    assert not (here.bootstrap.run / "lonely.sock").exists()


@pytest.mark.parametrize("leaving", [LEAVING])
async def test_a_stop_loses_no_call(here: Here) -> None:
    """Of two replicas one stops while both are called without a break."""
    services = []
    for number in range(2):
        service = Service("w")

        @service.endpoint
        async def call(number: int = number) -> int:
            await asyncio.sleep(0.005)
            return number

        await here.serve(service, f"node-{number}")
        services.append(service)
    await eventually(lambda: len(here.client.table.lookup("micro", "w")) == 2)
    failures: list[Exception] = []
    answers = 0

    async def caller() -> None:
        nonlocal answers
        while True:
            try:
                await here.client.call("w")
                answers += 1
            except Exception as error:
                failures.append(error)

    tasks = [asyncio.create_task(caller()) for _ in range(10)]
    await eventually(lambda: answers > 100)
    await services[0].stop()
    before = answers
    await eventually(lambda: answers > before + 100)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert failures == []


@pytest.mark.parametrize(
    ("code", "asked", "served"),
    [("latest", "", "latest"), ("v1", "", "v1"), ("v1", "latest", "v1"), ("v1", "v2", "v2")],
)
async def test_versions(here: Here, code: str, asked: str, served: str) -> None:
    """What a workload asks for wins over what the code says; "latest" asks for nothing."""
    service = Service("w", version=code)
    await service.start(replace(here.bootstrap, version=asked))
    await here.known("w")
    (route,) = here.client.table.lookup("micro", "w")
    assert route.version == served
    await service.stop()


async def test_a_long_instance_name(here: Here) -> None:
    """Its own name would make too long a path for a socket; it is still known by it."""
    service, _ = hooked()
    await here.serve(service, "n" * 200)
    assert await here.client.call("w", node="n" * 200) == "here"


async def test_nothing_is_left(here: Here) -> None:
    """No task, no socket."""
    for number in range(4):
        if number == 1:  # what the platform's own client keeps is there by now
            tasks, files = asyncio.all_tasks(), set(os.listdir(here.bootstrap.run))
        service, _ = hooked()
        await service.start(here.bootstrap)
        await here.known("w")
        assert await here.client.call("w") == "here"
        await service.stop()
    await eventually(lambda: asyncio.all_tasks() <= tasks)
    assert set(os.listdir(here.bootstrap.run)) == files


async def test_a_call_that_outlives_the_drain(here: Here) -> None:
    """It is cut off, and its caller is told."""
    service, stuck = Service("w"), asyncio.Event()

    @service.endpoint
    async def call() -> None:
        stuck.set()
        await asyncio.Event().wait()

    await here.serve(service)
    host = service._life.host  # type: ignore[union-attr]
    assert host is not None
    host._drain = 0.1
    calling = asyncio.create_task(here.client.call("w"))
    await stuck.wait()
    await service.stop()
    with pytest.raises((Cancelled, BadGateway)):
        await calling
