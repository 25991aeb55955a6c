"""Many calls on one connection, and messages that do not fit a frame."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest

from micro_ray.errors import TooLarge
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire.line import Line, call

SMALL = Limits(max_frame=2048, max_message=300_000, window=4096)


async def echo(incoming: Incoming) -> None:
    await incoming.reply(await incoming.receive() or b"")


async def double(incoming: Incoming) -> None:
    while (message := await incoming.receive()) is not None:
        await incoming.send(message)


async def test_a_thousand_at_once(line: Line) -> None:
    """Each gets its own answer, though they end in another order than they began."""
    gates = [asyncio.Event() for _ in range(1000)]
    started = 0

    async def wait(incoming: Incoming) -> None:
        nonlocal started
        number = int(await incoming.receive() or b"")
        started += 1
        await gates[number].wait()
        await incoming.reply(b"answer %d" % number)

    server, peer = await line.pair(wait)
    calls = [asyncio.ensure_future(peer.call(call(), b"%d" % n)) for n in range(1000)]
    await eventually(lambda: started == 1000)
    assert (peer.in_flight, server.in_flight) == (1000, 1000)
    order = list(range(1000))
    random.Random(1).shuffle(order)
    for number in order:
        gates[number].set()
    assert await asyncio.gather(*calls) == [b"answer %d" % n for n in range(1000)]
    assert len(server.connections) == 1
    assert (peer.in_flight, server.in_flight) == (0, 0)


async def test_streams_side_by_side(line: Line) -> None:
    """Credit is each stream's own: one that nobody reads does not hold the others."""
    _, peer = await line.pair(double, limits=SMALL, caller=SMALL)

    async def talk(number: int) -> None:
        async with await peer.open(call()) as stream:
            for step in range(20):
                message = b"%d-%d " % (number, step) * 300
                send = asyncio.ensure_future(stream.send(message))
                assert await stream.receive() == message
                await send
            await stream.end()
            assert await stream.receive() is None

    async with await peer.open(call()) as stalled:
        fill = asyncio.ensure_future(stalled.send(b"x" * 200_000))
        await asyncio.gather(*map(talk, range(20)))
        assert not fill.done()
        fill.cancel()
        await asyncio.gather(fill, return_exceptions=True)


@pytest.mark.parametrize("size", [2047, 2048, 2049, 4096, 4097, 6144, 100_000, 300_000])
async def test_messages_larger_than_a_frame_and_than_the_window(line: Line, size: int) -> None:
    _, peer = await line.pair(echo, limits=SMALL, caller=SMALL)
    body = random.Random(size).randbytes(size)
    assert await peer.call(call(), body) == body
    async with await peer.open(call()) as stream:
        sending = asyncio.ensure_future(stream.send(body))
        assert await stream.receive() == body
        await sending


async def test_the_largest_message_and_one_byte_more(line: Line) -> None:
    _, peer = await line.pair(echo, limits=SMALL)
    assert len(await peer.call(call(), bytes(300_000))) == 300_000
    with pytest.raises(TooLarge, match="300001 bytes; 300000 allowed"):
        await peer.call(call(), bytes(300_001))
    async with await peer.open(call()) as stream:
        with pytest.raises(TooLarge, match="300001 bytes; 300000 allowed"):
            await stream.send(bytes(300_001))
        await stream.send(b"another")  # nothing of the large one has been sent
        assert await stream.receive() == b"another"
    assert peer.in_flight == 0


async def test_an_answer_too_large_for_its_caller(line: Line) -> None:
    async def large(incoming: Incoming) -> None:
        await incoming.reply(bytes(300_001))

    _, peer = await line.pair(large, caller=SMALL)
    for body in (b"", b"x" * 500_000):
        with pytest.raises(TooLarge, match="300001 bytes; 300000 allowed"):
            await peer.call(call(), body)


async def test_sixteen_megabytes(line: Line) -> None:
    async def digest(incoming: Incoming) -> None:
        body = await incoming.receive() or b""
        await incoming.reply(hashlib.sha256(body).digest() + body)

    _, peer = await line.pair(digest)
    body = random.Random(2).randbytes(16 * 2**20 - 32)
    answer = await peer.call(call(), body)
    assert answer[:32] == hashlib.sha256(body).digest()
    assert answer[32:] == body


async def test_many_senders_of_one_stream_do_not_mix_their_messages(line: Line) -> None:
    _, peer = await line.pair(double, limits=SMALL, caller=SMALL)
    async with await peer.open(call()) as stream:
        sent = [bytes([65 + n]) * (5000 if n % 3 else 10) for n in range(26)]
        senders = [asyncio.ensure_future(stream.send(message)) for message in sent]
        assert [await stream.receive() for _ in sent] == sent
        await asyncio.gather(*senders)
        ends = [asyncio.ensure_future(stream.end()) for _ in range(3)]
        await asyncio.gather(*ends)
        assert await stream.receive() is None
    assert peer.in_flight == 0
    assert not peer.closed


async def test_the_end_waits_for_the_message_before_it(line: Line) -> None:
    async def collect(incoming: Incoming) -> None:
        messages = []
        while (message := await incoming.receive()) is not None:
            messages.append(len(message))
        await incoming.reply(repr(messages).encode())

    _, peer = await line.pair(collect, limits=SMALL)
    async with await peer.open(call()) as stream:
        await stream.send(b"x")
        sending = asyncio.ensure_future(stream.send(bytes(50_000)))
        await asyncio.sleep(0)
        await asyncio.gather(stream.end(), stream.end(), sending)
        assert await stream.receive() == b"[1, 50000]"


async def test_two_receivers_are_told(line: Line) -> None:
    _, peer = await line.pair(double)
    async with await peer.open(call()) as stream:
        first = asyncio.ensure_future(stream.receive())
        await asyncio.sleep(0)
        with pytest.raises(Exception, match="two tasks receive from one stream"):
            await stream.receive()
        await stream.send(b"x")
        assert await first == b"x"
