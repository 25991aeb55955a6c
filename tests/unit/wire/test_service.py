"""A service's endpoints together: names, what is near, bounds, health, errors."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest

from micro_ray.context import current
from micro_ray.errors import BadRequest, MicroError, NotFound, Unavailable
from micro_ray.network import Refused
from micro_ray.registry import MAX_NAME
from micro_ray.wire import endpoints as module
from micro_ray.wire.endpoints import Endpoints
from tests.fixtures.wait import eventually
from tests.unit.wire.served import Served, serving


async def nothing() -> None:
    """Does nothing.

    And says no more of it."""


@pytest.mark.parametrize(
    "name", ["Test.Call", "test.call", "TEST.CALL", "te-st.ca_ll", "_Test_.Call-"]
)
async def test_names_match_however_they_are_spelled(served: Served, name: str) -> None:
    served.add(nothing)
    for _ in range(2):
        assert await served.call({}, name) == {}


@pytest.mark.parametrize(
    "name",
    ["", "Call", "Test.", ".Call", "Test..Call", "1Test.Call", "Test Call.X", "Test.Call\n",
     "Te/st.Call", "T." + "x" * MAX_NAME, "Tést.Call"],
)  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(BadRequest, match=r"is not like Handler\.Method"):
        Endpoints("test").add(name, nothing)


@pytest.mark.parametrize("name", ["Test.Call", "test.CALL", "Te-st.Call", "Debug.Health"])
def test_names_that_are_taken(name: str) -> None:
    endpoints = Endpoints("test").add("Test.Call", nothing)
    with pytest.raises(BadRequest, match=rf"endpoint {name} is defined twice"):
        endpoints.add(name, nothing)
    assert [e.name for e in endpoints.published] == ["Test.Call"]


async def test_an_unknown_endpoint_says_what_is_near(served: Served) -> None:
    with pytest.raises(NotFound, match=r"no endpoint 'Test.Call' in test; there is none"):
        await served.call()
    for name in ("Test.Read", "Test.Write", "Users.List"):
        served.add(nothing, name)
    with pytest.raises(NotFound, match=r"no endpoint 'Test.Raed' in test; there is Test.Read"):
        await served.call({}, "Test.Raed")
    with pytest.raises(NotFound, match=r"there is Test.Read, Test.Write, Users.List"):
        await served.call({}, "zzzzzzzzzz")


async def test_an_endless_name_is_neither_searched_nor_kept(served: Served) -> None:
    served.add(nothing)
    begun = time.thread_time()
    for name in ("x" * 60_000, "Test" + "-" * 60_000 + ".Call"):
        with pytest.raises(BadRequest, match=r"endpoint name of 600\d\d characters"):
            await served.call({}, name)
    assert time.thread_time() - begun < 1


async def test_spellings_are_remembered_to_a_bound(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SPELLINGS", 20)
    served.add(nothing)
    for count in range(100):
        assert await served.call({}, "Test" + "-" * count + ".Call") == {}
    assert len(served.endpoints._serve) == 20


async def test_another_services_calls_are_refused(served: Served) -> None:
    """An address that another service had before: nothing is executed, whatever the names."""
    served.add(nothing)
    with pytest.raises(Refused, match="this node serves test, not 'other'"):
        await served.call({}, service="other")
    assert await served.call({}, service="TEST") == {}


async def test_calls_at_once_have_a_bound() -> None:
    gate = asyncio.Event()
    started = 0

    async def wait() -> None:
        nonlocal started
        started += 1
        await gate.wait()

    endpoints = Endpoints("test", max_in_flight=3).add("Test.Call", wait)
    async with serving(endpoints) as peer:
        served = Served(endpoints, peer)
        calls = [asyncio.ensure_future(served.call()) for _ in range(3)]
        await eventually(lambda: started == 3)
        with pytest.raises(Refused, match="3 calls are being served here") as caught:
            await served.call()
        assert caught.value.retry_after == 0.1
        assert endpoints.in_flight == 3
        gate.set()
        await asyncio.gather(*calls)
        assert await served.call() == {}
    assert (endpoints.in_flight, started) == (0, 4)


async def test_what_is_published(served: Served) -> None:
    async def described() -> None:
        """Does
        something."""

    served.add(nothing, metadata={"path": "/x", "method": "GET"})
    served.add(described, "Test.Described", metadata={"description": "Its own"})
    served.add(described, "Test.Other")
    metadata = [dict(e.metadata) for e in served.endpoints.published]
    assert metadata == [
        {"path": "/x", "method": "GET", "description": "Does nothing."},
        {"description": "Its own"},
        {"description": "Does something."},
    ]
    assert [e.name for e in served.endpoints.published] == [
        "Test.Call", "Test.Described", "Test.Other"
    ]  # fmt: skip


# -- health and figures ----------------------------------------------------------------------------


async def test_health_without_checks(served: Served) -> None:
    assert await served.call({}, "Debug.Health") == {"status": "ok", "checks": 0}


async def test_health_runs_every_check(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK", 0.1)
    ran: list[str] = []

    async def fine() -> None:
        ran.append("fine")

    def plain() -> None:
        ran.append("plain")

    async def database() -> None:
        raise ConnectionError("no route to host")

    async def hangs() -> None:
        ran.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            ran.append("given up")

    served.endpoints.check(fine)
    served.endpoints.check(plain)  # type: ignore[arg-type]  # async is asked for, this is forgiven
    assert await served.call({}, "Debug.Health") == {"status": "ok", "checks": 2}
    assert ran == ["fine", "plain"]
    for check in (database, hangs, hangs):
        served.endpoints.check(check)
    with pytest.raises(Unavailable) as caught:
        await served.call({}, "Debug.Health")
    assert [said for said in ran if said in ("begun", "given up")] == (
        ["begun"] * 2 + ["given up"] * 2  # side by side
    )
    assert type(caught.value) is Unavailable  # it has been executed: no other node is asked
    assert caught.value.detail == (
        "unhealthy: database: ConnectionError: no route to host; "
        "hangs: no answer within 0.1 s; hangs: no answer within 0.1 s"
    )


async def test_stats(served: Served) -> None:
    async def fails(code: int) -> None:
        raise NotFound("", "gone") if code == 404 else ValueError("oops")

    served.add(nothing)
    served.add(fails, "Test.Fails")
    before = await served.call({}, "Debug.Stats")
    await served.call()
    for code in (404, 500):
        with pytest.raises(MicroError):
            await served.call({"code": code}, "Test.Fails")
    with pytest.raises(NotFound):
        await served.call({}, "Test.Nowhere")
    stats = await served.call({}, "Debug.Stats")
    assert stats["requests"] - before["requests"] == 4  # the last one is this
    assert stats["errors"] - before["errors"] == 1  # 404 is an answer
    assert stats["in_flight"] == 0
    assert stats["pid"] == os.getpid()
    assert 0 < stats["uptime"] < 60
    assert abs(stats["started"] - time.time()) < 60
    assert stats["memory"] > 10**6
    for name in ("threads", "tasks", "sockets"):
        assert stats[name] >= 1


# -- errors ----------------------------------------------------------------------------------------


class Teapot(NotFound):
    """An error of the service's own, made in its own way."""

    def __init__(self) -> None:
        super().__init__("", "short and stout")


async def test_an_error_without_a_name_gets_the_services(served: Served) -> None:
    async def call() -> None:
        raise Teapot

    served.add(call)
    with pytest.raises(NotFound) as caught:
        await served.call()
    assert (caught.value.id, caught.value.detail) == ("test", "short and stout")


async def test_what_a_handlers_own_calls_meet_is_no_refusal(served: Served) -> None:
    """It has been executed: the caller must not try it elsewhere on its own."""

    async def call() -> None:
        raise Refused("network", "nobody there", 0.5)

    async def streamed() -> AsyncIterator[int]:
        yield 1
        raise Refused("network", "nobody there", 0.5)

    served.add(call)
    served.add(streamed, "Test.Stream")
    for failing in (served.call(), served.stream({}, name="Test.Stream")):
        with pytest.raises(Unavailable, match="nobody there") as caught:
            await failing
        assert type(caught.value) is Unavailable
        assert (caught.value.id, caught.value.retry_after) == ("network", 0.5)


async def test_the_context_ends_with_its_call(served: Served) -> None:
    """Calls side by side each have their own."""

    async def call(name: str) -> list[str]:
        before = current().caller
        await asyncio.sleep(0.01)
        return [name, before, current().caller]

    served.add(call)
    answers = await asyncio.gather(
        *(served.call({"name": n}, metadata={"micro-caller": n}) for n in ("a", "b", "c"))
    )
    assert answers == [[n, n, n] for n in ("a", "b", "c")]
    assert current().caller == ""


async def test_a_stream_that_is_left_is_closed(served: Served) -> None:
    """What a generator tidies up, it tidies up at once, and only once."""
    closed: list[str] = []

    async def call() -> AsyncIterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            await asyncio.sleep(0)
            closed.append("closed")

    served.add(call)
    async with await served.peer.open(served.head("Test.Call")) as stream:
        await stream.end()
        assert await stream.receive() == b"0"
    await eventually(lambda: closed == ["closed"])
    await eventually(lambda: served.endpoints.in_flight == 0)
