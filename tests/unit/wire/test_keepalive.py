"""Silent peers are asked, then dropped; peers that answer are kept."""

from __future__ import annotations

import asyncio
import time

import pytest

from micro_ray.network import Broken
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call

#: Short, but with room for a busy machine.
BRISK = Limits(keepalive=0.15)


async def wait(incoming: Incoming) -> None:
    if await incoming.receive() == b"wait":
        await asyncio.Event().wait()
    await incoming.reply(b"answer")


async def test_a_silent_caller_is_asked_then_dropped(any_line: Line) -> None:
    server, address = await any_line.server(wait, BRISK)
    begun = time.monotonic()
    async with raw.caller(address) as caller:
        caller.send(raw.request(1, b"wait"))
        ping = await caller.next()
        assert (ping.kind, ping.flags, ping.stream) == (raw.PING, 0, 0)
        assert await caller.rest() == []  # closed without a word: it would not be heard
        assert time.monotonic() - begun > 0.29
        await eventually(lambda: server.in_flight == 0 and not server.connections)


async def test_a_silent_server_is_asked_then_dropped(line: Line) -> None:
    pings: list[raw.Frame] = []

    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello())
        pings.extend(await peer.rest())

    async with raw.listening(f"{line.folder}/s", serve) as address:
        peer = await line.peer(address, BRISK)
        with pytest.raises(Broken, match="broke while the call was under way"):
            await peer.call(call(), b"x")
        assert peer.closed
        await eventually(lambda: [frame.kind for frame in pings] == [raw.REQUEST, raw.PING])


async def test_who_answers_is_kept(line: Line) -> None:
    server, address = await line.server(wait, BRISK)
    async with raw.caller(address) as caller:
        for _ in range(4):
            assert (await caller.get(raw.PING)).flags == 0
            caller.send(raw.frame(raw.PING, raw.ACK))
        caller.send(raw.request(1, b"x"))
        assert (await caller.get(raw.DATA)).payload == b"answer"
        assert len(server.connections) == 1


async def test_idle_connections_of_ours_live(line: Line) -> None:
    server, address = await line.server(wait, BRISK)
    peer = await line.peer(address, BRISK)
    hanging = asyncio.ensure_future(peer.call(call(), b"wait"))
    await asyncio.sleep(1.0)  # time is what is tested: six keep-alives pass
    assert not peer.closed
    assert not hanging.done()
    assert await peer.call(call(), b"x") == b"answer"
    assert len(server.connections) == 1
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


async def test_a_ping_is_answered_with_what_it_carried(any_line: Line) -> None:
    _, address = await any_line.server(wait)
    async with raw.caller(address) as caller:
        for payload in (b"", b"12345678", b"x" * 64, b"y" * 1000):
            caller.send(raw.frame(raw.PING, 0, 0, payload))
            answer = await caller.get(raw.PING)
            assert (answer.flags, answer.stream, answer.payload) == (raw.ACK, 0, payload[:64])
        caller.send(raw.frame(raw.PING, raw.ACK))  # an answer is not answered
        caller.send(raw.frame(raw.PING, 0, 0, b"last"))
        assert (await caller.get(raw.PING)).payload == b"last"


async def test_a_stopped_loop_is_not_taken_for_a_silent_peer(line: Line) -> None:
    """What has come while the loop was busy is read before the clock is looked at."""
    server, peer = await line.pair(wait, limits=BRISK, caller=BRISK)
    assert await peer.call(call(), b"x") == b"answer"
    time.sleep(0.6)  # noqa: ASYNC251 - the loop is to be blocked
    for _ in range(3):
        await asyncio.sleep(0.05)
    assert await peer.call(call(), b"x") == b"answer"
    assert len(server.connections) == 1
