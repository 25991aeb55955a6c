"""Calls with streams: answers, requests, both, and how they end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from micro_ray import Service
from micro_ray.errors import BadRequest, NotFound, PreconditionFailed, Timeout
from micro_ray.sdk.testing import Here
from tests.fixtures.wait import eventually
from tests.unit.sdk.services import Everything, Item


async def items(*counts: int) -> AsyncIterator[Any]:
    """Requests in every form that there is."""
    for number, count in enumerate(counts):
        yield [{"name": "i", "count": count}, Item("i", count), b'{"name":"i","count":%d}' % count][
            number % 3
        ]


async def collect(answers: AsyncIterator[Any], into: list[Any]) -> None:
    async for answer in answers:
        into.append(answer)


async def test_a_stream_of_answers(here: Here, every: Everything) -> None:
    stream = here.client.stream
    assert [n async for n in stream("every-thing", "count", {"to": 3})] == [
        {"name": "n", "count": n} for n in (1, 2, 3)
    ]
    typed = [n async for n in stream("every-thing", "count", {"to": 2}, into=Item)]
    assert typed == [Item("n", 1), Item("n", 2)]
    assert [n async for n in stream("every-thing", "count", {"to": 0})] == []
    raw = [n async for n in stream("every-thing", "count", {"to": 1}, into=bytes)]
    assert raw == [b'{"name":"n","count":1}']


async def test_a_stream_of_requests(here: Here, every: Everything) -> None:
    """One answer: by ``call``, or as a stream of one."""
    assert await here.client.call("every-thing", "total", items(1, 2, 3)) == 6
    assert every.seen == [Item("i", n) for n in (1, 2, 3)]
    assert await here.client.call("every-thing", "total", items()) == 0
    assert [n async for n in here.client.stream("every-thing", "total", items(4, 5))] == [9]
    with pytest.raises(BadRequest, match="a stream of requests goes to any node"):
        await here.client.call("every-thing", "total", items(1), node="node-1")


async def test_both_ways(here: Here, every: Everything) -> None:
    """An answer comes before the next request is made: it is a conversation."""
    answered = asyncio.Queue[int]()

    async def asks() -> AsyncIterator[Item]:
        count = 1
        for _ in range(5):
            yield Item("x", count)
            count = await answered.get()

    counts = []
    async for answer in here.client.stream("every-thing", "double", asks(), into=Item):
        counts.append(answer.count)
        answered.put_nowait(answer.count)
    assert counts == [2, 4, 8, 16, 32]


async def test_a_stream_is_not_held(here: Here, every: Everything) -> None:
    """An endless one is read as far as it is wanted, and then the service knows."""
    total = 0
    async with aclosing(here.client.stream("every-thing", "endless", into=bytes)) as pieces:
        async for piece in pieces:
            total += len(piece)
            if total > 3_000_000:
                break
    await eventually(lambda: every.service.in_flight == 0)


async def test_who_listens_goes_away(here: Here, every: Everything) -> None:
    """By leaving, by being cancelled, or by being forgotten: the handler is cancelled."""
    async with aclosing(here.client.stream("every-thing", "count", {"to": 9, "pause": 9})) as left:
        await anext(left)
    await eventually(lambda: every.cancelled == 1)

    async def listen() -> None:
        async for _ in here.client.stream("every-thing", "count", {"to": 9, "pause": 9}):
            pass

    listening = asyncio.create_task(listen())
    await eventually(lambda: every.service.in_flight == 1)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await eventually(lambda: every.cancelled == 2)

    forgotten = here.client.stream("every-thing", "count", {"to": 9, "pause": 9})
    await anext(forgotten)
    del forgotten
    gc.collect()
    await eventually(lambda: every.cancelled == 3)


async def test_errors_of_streams_keep_their_type(here: Here, every: Everything) -> None:
    """After the answers that came before them."""
    got: list[Any] = []
    broken = here.client.stream("every-thing", "breaks", {"after": 2})
    with pytest.raises(PreconditionFailed, match="it broke"):
        await collect(broken, got)
    assert got == [0, 1]
    for service, endpoint, value, kind in (
        ("nobody", "count", {"to": 1}, NotFound),
        ("every-thing", "nothing", {"to": 1}, NotFound),
        ("every-thing", "count", {"to": "many"}, BadRequest),
        ("every-thing", "count", object(), BadRequest),
        ("every-thing", "total", _bad(), BadRequest),
    ):
        with pytest.raises(kind):
            _ = [n async for n in here.client.stream(service, endpoint, value)]


async def _bad() -> AsyncIterator[Any]:
    yield Item("i", 1)
    yield {"name": 3}


async def test_requests_that_cannot_be_made(here: Here, every: Everything) -> None:
    """What the author's own iterable raises is his own error, and the service is told to stop."""

    async def raises() -> AsyncIterator[Any]:
        yield Item("i", 1)
        raise LookupError("no more")

    async def unsendable() -> AsyncIterator[Any]:
        yield Item("i", 1)
        yield object()

    for endpoint in ("total", "double"):
        with pytest.raises(LookupError, match="no more"):
            _ = [n async for n in here.client.stream("every-thing", endpoint, raises())]
        with pytest.raises(BadRequest, match="the request cannot be sent"):
            _ = [n async for n in here.client.stream("every-thing", endpoint, unsendable())]
    with pytest.raises(LookupError):
        await here.client.call("every-thing", "total", raises())
    await eventually(lambda: every.service.in_flight == 0)


async def test_the_answer_comes_before_the_end_of_the_requests(here: Here) -> None:
    """Then they are no longer asked for, and their generator is closed."""
    service, closed = Service("w"), asyncio.Event()

    @service.endpoint
    async def first(items: AsyncIterator[Item]) -> int:
        async for item in items:
            return item.count
        return 0

    await here.serve(service)

    async def endless() -> AsyncIterator[Item]:
        try:
            while True:
                yield Item("i", 7)
                await asyncio.sleep(0)
        finally:
            closed.set()

    async with asyncio.timeout(10):
        assert await here.client.call("w", "first", endless()) == 7
        await closed.wait()


async def test_deadlines_of_streams(here: Here, every: Everything) -> None:
    """They cover the whole; without one a stream may take its time."""
    got: list[Any] = []
    value = {"to": 100, "pause": 0.05}
    with pytest.raises(Timeout):
        await collect(here.client.stream("every-thing", "count", value, timeout=0.3), got)
    assert 1 <= len(got) <= 7
    await eventually(lambda: every.cancelled == 1)


async def test_driven_from_several_tasks(here: Here, every: Everything) -> None:
    """One after the other, as frameworks do it."""
    numbers = here.client.stream("every-thing", "double", items(1, 2, 3), into=Item)
    got = [await asyncio.create_task(_next(numbers)) for _ in range(3)]
    assert [item.count for item in got] == [2, 4, 6]
    with pytest.raises(StopAsyncIteration):
        await asyncio.create_task(_next(numbers))


async def _next(numbers: Any) -> Any:
    return await anext(numbers)


async def test_bytes_by_hand(here: Here, every: Everything) -> None:
    """``open`` gives both directions as they are."""
    async with await here.client.open("every-thing", "double") as stream:
        await stream.send(b'{"name": "a", "count": 4}')
        assert await stream.receive() == b'{"name":"a","count":8}'
        await stream.end()
        assert await stream.receive() is None
    async with await here.client.open("every-thing", "total") as stream:
        await stream.send(b"[")
        await stream.end()
        with pytest.raises(BadRequest):
            await stream.receive()
