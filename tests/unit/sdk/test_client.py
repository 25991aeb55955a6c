"""Calls of one message there and one back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pydantic
import pytest

from micro_ray import AsyncClient, errors
from micro_ray.errors import (
    BadGateway,
    BadRequest,
    InternalError,
    MicroError,
    NotFound,
    Timeout,
    Unavailable,
)
from micro_ray.sdk import client as client_module
from micro_ray.sdk.testing import Here
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.sdk.services import Everything, Item


class Struct(msgspec.Struct):
    name: str
    count: int = 1


class Model(pydantic.BaseModel):
    name: str
    count: int = 1


@dataclass
class Other:
    name: str
    colour: str


async def test_names_of_endpoints(here: Here, every: Everything) -> None:
    """The default is ``call``; a method of the service's own handler, or in full."""
    hello = {"message": "Hello World"}
    call = here.client.call
    assert await call("every-thing") == hello
    for endpoint in ("call", "Call", "EveryThing.Call", "everything.call"):
        assert await call("every-thing", endpoint) == hello
    assert await call("Every-Thing", "call", {"name": "you"}) == {"message": "Hello you"}


@pytest.mark.parametrize(
    "value",
    [{"name": "a", "count": 2}, Item("a", 2), Struct("a", 2), Model(name="a", count=2)],
    ids=["dict", "dataclass", "struct", "pydantic"],
)
@pytest.mark.parametrize("into", [None, Item, Struct, Model], ids=str)
async def test_values(here: Here, every: Everything, value: Any, into: Any) -> None:
    """Whatever goes in comes out as what is asked for."""
    answer = await here.client.call("every-thing", "item", value, into=into)
    if into is None:
        assert answer == {"name": "aa", "count": 3}
    else:
        assert isinstance(answer, into)
        assert (answer.name, answer.count) == ("aa", 3)


async def test_bytes(here: Here, every: Everything) -> None:
    """As they are, and back as they are; bytes of JSON are a request too."""
    call = here.client.call
    assert await call("every-thing", "raw", b"abc\xff") == b"\xffcba"
    assert await call("every-thing", "raw", bytearray(b"abc")) == b"cba"
    assert await call("every-thing", "raw", b"") == b""
    assert await call("every-thing", "call", {"name": "x"}, into=bytes) == b'{"message":"Hello x"}'
    answer = await call("every-thing", "item", b'{"name": "a"}', into=Item)
    assert answer == Item("aa", 2)


async def test_an_answer_of_another_type(here: Here, every: Everything) -> None:
    """It is said to be the service's fault, and what is wrong with it."""
    for into in (Other, int, list[int]):
        with pytest.raises(BadGateway, match="every-thing: an answer that cannot be read"):
            await here.client.call("every-thing", "call", into=into)


async def test_a_value_that_cannot_be_sent(here: Here, every: Everything) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (object(), {"a": object()}, deep, {1j: 2}):
        with pytest.raises(BadRequest, match="the request cannot be sent"):
            await here.client.call("every-thing", "call", value)


@pytest.mark.parametrize("code", sorted(errors.CODES))
async def test_errors_keep_their_type(here: Here, every: Everything, code: int) -> None:
    """With all fields; an error without an id gets the service's name."""
    with pytest.raises(errors.CODES[code]) as caught:
        await here.client.call("every-thing", "raises", {"code": code, "detail": "ä \u2028"})
    error = caught.value
    assert type(error) is errors.CODES[code]
    assert (error.id, error.detail, error.retry_after) == ("every-thing", "ä \u2028", 2.5)


async def test_other_errors(here: Here, every: Everything) -> None:
    call = here.client.call
    with pytest.raises(InternalError, match="ZeroDivisionError: oh no"):
        await call("every-thing", "dies")
    with pytest.raises(BadRequest, match="count"):
        await call("every-thing", "item", {"name": "a", "count": "many"})
    with pytest.raises(BadRequest, match="name"):
        await call("every-thing", "item", {})
    with pytest.raises(NotFound, match=r"no service 'every-thin'.*did you mean every-thing"):
        await call("every-thin")
    with pytest.raises(NotFound, match=r"no endpoint 'EveryThing\.Itam'.*EveryThing\.Item"):
        await call("every-thing", "itam")


async def test_which_node(here: Here, every: Everything) -> None:
    other = Everything()
    await here.serve(other.service, "node-2")
    nodes = {(await here.client.call("every-thing", "where"))["node"] for _ in range(60)}
    assert nodes == {"node-1", "node-2"}
    for node in sorted(nodes):
        for _ in range(5):
            answer = await here.client.call("every-thing", "where", node=node)
            assert answer["node"] == node
    assert (await here.client.call("every-thing", "where", version="v1"))["node"] in nodes
    for options in ({"node": "node-3"}, {"version": "v2"}):
        with pytest.raises((NotFound, Unavailable)):
            await here.client.call("every-thing", "where", timeout=0.2, **options)


async def test_deadlines(here: Here, every: Everything) -> None:
    """Time is up on both sides: the handler is cancelled."""
    begun = time.monotonic()
    with pytest.raises(Timeout):
        await here.client.call("every-thing", "slow", {"seconds": 30}, timeout=0.1)
    assert time.monotonic() - begun < PROMPT
    await eventually(lambda: every.cancelled == 1)
    assert await here.client.call("every-thing", "slow", {"seconds": 0.01}, timeout=5) == "at last"


async def test_who_calls_goes_away(here: Here, every: Everything) -> None:
    calling = asyncio.create_task(here.client.call("every-thing", "slow", {"seconds": 30}))
    await eventually(lambda: every.service.in_flight == 1)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await eventually(lambda: every.cancelled == 1)


async def test_many_at_once(here: Here, every: Everything) -> None:
    answers = await asyncio.gather(
        *(here.client.call("every-thing", "call", {"name": str(n)}) for n in range(500))
    )
    assert answers == [{"message": f"Hello {n}"} for n in range(500)]


async def test_what_there_is(here: Here, every: Everything) -> None:
    assert "every-thing" in await here.client.services()
    (entry,) = [e for e in await here.client.entries() if e.service == "every-thing"]
    endpoints = {endpoint.name: endpoint for endpoint in entry.endpoints}
    assert set(endpoints["EveryThing.Item"].request["properties"]) == {"name", "count"}
    assert endpoints["EveryThing.Double"].stream == "bidi"


# -- where there is no platform --------------------------------------------------------------------


async def quickly(client: AsyncClient, said: str) -> None:
    begun = time.monotonic()
    async with client:
        for attempt in (
            client.call("x"),
            client.services(),
            client.entries(),
            client.open("x", "y"),
        ):
            with pytest.raises(Unavailable, match=said):
                await attempt
    assert time.monotonic() - begun < PROMPT


async def test_no_server(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a socket that is not there."""
    monkeypatch.setattr(client_module, "FIRST_TABLE", 60.0)
    monkeypatch.setattr(client_module, "GONE", 60.0)
    nowhere = replace(here.bootstrap, routers=(f"unix:{here.bootstrap.run}/none.sock",))
    said = r"no micro server at unix:.*/none\.sock; start one with `micro server`"
    await quickly(AsyncClient(nowhere), said)


async def test_a_server_that_was_killed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sockets are there still and nobody listens; it may be on its way back."""
    monkeypatch.setattr(client_module, "FIRST_TABLE", 60.0)
    monkeypatch.setattr(client_module, "GONE", 0.1)
    stale = here.bootstrap.run / "stale.sock"
    with socket.socket(socket.AF_UNIX) as once:
        once.bind(str(stale))
    nowhere = replace(here.bootstrap, routers=(f"unix:{stale}",))
    await quickly(AsyncClient(nowhere), "no micro server at")
    monkeypatch.setattr(client_module, "GONE", 5.0)
    async with AsyncClient(nowhere) as client:
        waiting = asyncio.create_task(client.services())
        await asyncio.sleep(0)
        os.unlink(stale)
        stale.symlink_to(here.bootstrap.routers[0].removeprefix("unix:"))
        assert "store" in await waiting


async def test_a_router_that_says_nothing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_TABLE", 0.2)
    path = here.bootstrap.run / "silent.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        nowhere = replace(here.bootstrap, routers=(f"unix:{path}",))
        await quickly(AsyncClient(nowhere), "no micro server at")
        async with AsyncClient(nowhere) as client:
            monkeypatch.setattr(client_module, "FIRST_TABLE", 30)
            with pytest.raises(Unavailable):  # the call's own time counts too
                await client.call("x", timeout=0.1)


async def test_one_router_of_two(here: Here) -> None:
    routers = (f"unix:{here.bootstrap.run}/none.sock", *here.bootstrap.routers)
    async with AsyncClient(replace(here.bootstrap, routers=routers)) as client:
        assert "store" in await client.services()


async def test_no_router_is_named(here: Here) -> None:
    async with AsyncClient(replace(here.bootstrap, routers=())) as client:
        with pytest.raises(Unavailable, match="no micro server at any address"):
            await client.services()


# -- its life --------------------------------------------------------------------------------------


async def test_outside_of_its_with(here: Here, every: Everything) -> None:
    client = AsyncClient(here.bootstrap)
    attempts: list[Any] = [
        lambda: client.call("every-thing"),
        lambda: client.services(),
        lambda: client.entries(),
        lambda: client.open("every-thing", "count"),
        lambda: anext(client.stream("every-thing", "count", {"to": 1})),
    ]

    async def refused() -> None:
        for attempt in attempts:
            with pytest.raises(BadRequest, match="use the client inside `async with`"):
                await attempt()

    await refused()
    async with client:
        assert await client.call("every-thing") == {"message": "Hello World"}
        with pytest.raises(BadRequest, match="a client is opened once"):
            await client.__aenter__()
        assert await client.call("every-thing") == {"message": "Hello World"}
    await refused()
    with pytest.raises(BadRequest, match="a client is opened once; make another"):
        await client.__aenter__()


async def test_closed_under_a_call(here: Here, every: Everything) -> None:
    """Who waits is told."""
    client = AsyncClient(here.bootstrap)
    async with client:
        calling = asyncio.create_task(client.call("every-thing", "slow", {"seconds": 30}))
        await eventually(lambda: every.service.in_flight == 1)
    with pytest.raises(MicroError):
        await calling
    await eventually(lambda: every.cancelled == 1)


async def test_no_task_is_left(here: Here, every: Everything) -> None:
    before = asyncio.all_tasks()
    async with AsyncClient(here.bootstrap) as client:
        await client.call("every-thing")
        _ = [n async for n in client.stream("every-thing", "count", {"to": 3})]
    await eventually(lambda: asyncio.all_tasks() <= before)


async def test_many_clients(here: Here, every: Everything) -> None:
    clients = [AsyncClient(here.bootstrap) for _ in range(20)]
    async with contextlib.AsyncExitStack() as stack:
        for client in clients:
            await stack.enter_async_context(client)
        answers = await asyncio.gather(*(client.call("every-thing") for client in clients))
    assert answers == [{"message": "Hello World"}] * 20
