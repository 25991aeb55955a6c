"""Fast senders and readers that have stalled: what either side holds has a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from micro_ray.errors import TooManyRequests
from micro_ray.network import Refused, Stream
from micro_ray.wire.client import ClientConnection
from micro_ray.wire.connection import GATHER
from micro_ray.wire.protocol import COST, Limits
from micro_ray.wire.server import Incoming, Server, ServerConnection
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call

KB, MB = 2**10, 2**20


def ours(server: Server) -> ServerConnection:
    (connection,) = server.connections
    return connection


async def settled(value: Callable[[], int]) -> int:
    """The value once it no longer changes."""
    last, same = -1, 0
    while same < 10:
        await asyncio.sleep(0.01)
        now = value()
        last, same = now, same + 1 if now == last else 0
    return last


async def pour(stream: Stream | Incoming, size: int) -> None:
    while True:
        await stream.send(b"x" * size)


async def stall(incoming: Incoming) -> None:
    await asyncio.Event().wait()


async def flood(incoming: Incoming) -> None:
    await pour(incoming, int(await incoming.receive() or b"1000"))


@pytest.mark.parametrize("size", [0, 1, 1000, 100 * KB])
async def test_a_handler_that_takes_nothing(any_line: Line, size: int) -> None:
    """Twenty streams of a caller that never stops: each holds its window and no more."""
    server, peer = await any_line.pair(stall)
    streams = [await peer.open(call()) for _ in range(20)]
    pouring = [asyncio.ensure_future(pour(stream, size)) for stream in streams]
    held = await settled(lambda: ours(server).buffered + ours(server).undecoded)
    window = Limits().window
    assert 20 * window * 0.5 < held <= 20 * window
    for task in pouring:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*pouring, return_exceptions=True)
    for stream in streams:
        stream.cancel()
    await eventually(lambda: ours(server).buffered == 0)


@pytest.mark.parametrize("size", [0, 1, 1000, 100 * KB])
async def test_a_caller_that_takes_nothing(any_line: Line, size: int) -> None:
    server, peer = await any_line.pair(flood)
    connection: ClientConnection = peer._connection  # type: ignore[attr-defined]
    streams = [await peer.open(call()) for _ in range(20)]
    for stream in streams:
        await stream.send(b"%d" % size)
    held = await settled(lambda: connection.buffered + connection.undecoded)
    window = Limits().window
    assert 20 * window * 0.5 < held <= 20 * window
    assert ours(server).unsent == 0
    for stream in streams:
        stream.cancel()
    assert connection.buffered == 0
    await eventually(lambda: server.in_flight == 0)


async def test_a_caller_whose_socket_is_full(line: Line) -> None:
    """The peer does not even read. A thousand answers of 100 KB wait as what they are, the
    connection holds a few of them."""
    answers = 0

    async def answer(incoming: Incoming) -> None:
        nonlocal answers
        answers += 1
        await incoming.reply(b"x" * 100 * KB)

    server, address = await line.server(answer)
    async with raw.connected(address) as caller:
        caller._writer.transport.pause_reading()
        caller.send(raw.hello())
        caller.send(*[raw.request(n) for n in range(1, 2001, 2)])
        await eventually(lambda: answers == 1000)
        held = await settled(lambda: ours(server).unsent)
        assert 0 < held <= 2 * GATHER + 100 * KB
        assert server.in_flight > 900
        caller._writer.transport.resume_reading()
        got = 0
        while got < 1000:
            got += (await caller.next()).kind == raw.DATA
            assert ours(server).unsent <= 2 * GATHER + 100 * KB
        await eventually(lambda: server.in_flight == 0)


async def test_a_server_whose_socket_is_full(line: Line) -> None:
    async def asleep(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello(window=8 * MB))
        peer._writer.transport.pause_reading()
        await asyncio.Event().wait()

    async with raw.listening(f"{line.folder}/s", asleep) as address:
        peer = await line.peer(address)
        connection: ClientConnection = peer._connection  # type: ignore[attr-defined]
        streams = [await peer.open(call()) for _ in range(50)]
        tasks = [asyncio.ensure_future(pour(stream, 100 * KB)) for stream in streams]
        tasks += [
            asyncio.ensure_future(peer.call(call(timeout=60), b"x" * 100 * KB)) for _ in range(50)
        ]
        held = await settled(lambda: connection.unsent)
        assert 0 < held <= 2 * GATHER + 100 * KB
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


PINGS = raw.frame(raw.PING, 0, 0, b"x" * 64)
REFUSED = [raw.request(n, header=b"{}") for n in range(1, 200_001, 2)]


@pytest.mark.parametrize("frames", [PINGS * 1000, b""], ids=["pings", "refusals"])
async def test_who_sends_and_takes_nothing_is_dropped(line: Line, frames: bytes) -> None:
    """PINGs and refusals are answered without credit; their answers must not pile up."""
    server, address = await line.server(stall, Limits(max_buffered=MB))
    async with raw.connected(address) as caller:
        caller.send(raw.hello())
        await eventually(lambda: server.connections)
        connection = ours(server)
        caller._writer.transport.pause_reading()
        largest, at = 0, 0
        async with asyncio.timeout(20):
            while not connection.is_lost:
                caller.send(frames or b"".join(REFUSED[at : at + 1000]))
                at += 1000
                await asyncio.sleep(0)
                largest = max(largest, connection.unsent)
        assert MB < largest < 3 * MB
    assert not server.connections


async def test_many_long_messages_are_given_up_before_memory_is(line: Line) -> None:
    """Parts get credit before anybody takes them; all together they have ``max_buffered``."""
    limits = Limits(max_buffered=MB, max_message=MB)
    server, peer = await line.pair(stall, limits=limits)
    largest = 0

    async def send() -> None:
        async with await peer.open(call()) as stream:
            await stream.send(bytes(MB))
            await stream.receive()

    tasks = [asyncio.ensure_future(send()) for _ in range(40)]
    while not all(task.done() for task in tasks):
        largest = max(largest, ours(server).buffered)
        await asyncio.sleep(0.001)
        if sum(task.done() for task in tasks) >= 38:
            break
    outcomes = [task.exception() for task in tasks if task.done()]
    assert outcomes
    assert all(isinstance(outcome, TooManyRequests | Refused) for outcome in outcomes)
    assert any(isinstance(outcome, TooManyRequests) for outcome in outcomes)
    assert "1048576 bytes unread" in str(outcomes[0])
    assert largest <= MB + 512 * KB
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await eventually(lambda: ours(server).buffered == 0)


async def test_many_short_messages_too(line: Line) -> None:
    """Streams that were opened while there was room, and then fill their windows."""
    limits = Limits(max_buffered=MB)
    server, peer = await line.pair(stall, limits=limits)
    streams = [await peer.open(call()) for _ in range(20)]
    # 1024 with their cost, so that none is cut in parts by the end of the credit.
    tasks = [asyncio.ensure_future(pour(stream, 960)) for stream in streams]
    await eventually(lambda: sum(task.done() for task in tasks) >= 11)
    assert MB < ours(server).buffered <= 2 * MB
    failed = [task.exception() for task in tasks if task.done()]
    assert all(isinstance(error, TooManyRequests) for error in failed)
    with pytest.raises(Refused, match="1048576 bytes unread"):
        await peer.call(call(timeout=5), b"x")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for stream in streams:
        stream.cancel()
    await eventually(lambda: ours(server).buffered == 0 and server.in_flight == 0)


async def test_a_caller_gives_up_answers_that_are_too_much_together(line: Line) -> None:
    async def large(incoming: Incoming) -> None:
        await incoming.reply(bytes(MB))

    limits = Limits(max_buffered=3 * MB, max_message=MB)
    _, peer = await line.pair(large, caller=limits)
    connection: ClientConnection = peer._connection  # type: ignore[attr-defined]
    calls = [peer.call(call(), b"") for _ in range(40)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    answered = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
    crowded = [outcome for outcome in outcomes if isinstance(outcome, TooManyRequests)]
    assert answered
    assert len(answered) + len(crowded) == 40
    assert connection.buffered == 0
    assert await peer.call(call(), b"") == bytes(MB)


async def test_nothing_is_counted_after_it_has_gone(line: Line) -> None:
    """However calls end, what they held is forgotten: bytes and costs."""
    server, peer = await line.pair(stall, limits=Limits(window=8 * KB, max_frame=4 * KB))
    connection: ClientConnection = peer._connection  # type: ignore[attr-defined]
    for size in (0, 1, 5000, 50_000):
        async with await peer.open(call(timeout=0.05)) as stream:
            with pytest.raises(Exception, match="before the deadline"):
                await pour(stream, size)
        stream = await peer.open(call())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pour(stream, size)
        stream.cancel()
    await eventually(lambda: server.in_flight == 0)
    assert ours(server).buffered == connection.buffered == 0
    assert COST == 64
