"""The line breaks, or is about to: what a call knows of whether it was sent."""

from __future__ import annotations

import asyncio

import pytest

from micro_ray.errors import Cancelled
from micro_ray.network import Broken, Peer, Refused, Silent
from micro_ray.wire.client import ClientConnection
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call

MB = 2**20


def inside(peer: Peer) -> ClientConnection:
    connection: ClientConnection = peer._connection  # type: ignore[attr-defined]
    return connection


async def asleep(peer: raw.Raw) -> None:
    """A server that greets and then reads nothing."""
    await peer.get(raw.HELLO)
    peer.send(raw.hello(window=64 * MB, max_message=64 * MB))
    peer._writer.transport.pause_reading()
    await asyncio.Event().wait()


async def full(peer: Peer) -> asyncio.Task[bytes]:
    """Fill the line until the transport takes no more."""
    task = asyncio.ensure_future(peer.call(call(), bytes(900_000)))
    await eventually(lambda: inside(peer).paused)
    return task


async def test_sent_and_not_sent(line: Line) -> None:
    """What had left this process may have been executed; what had not, was not."""

    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello())
        await peer.get(raw.REQUEST)
        await asyncio.Event().wait()

    async with raw.listening(f"{line.folder}/s", serve) as address:
        peer = await line.peer(address)
        sent = asyncio.ensure_future(peer.call(call(), b"sent"))
        stream = await peer.open(call())
        await eventually(lambda: inside(peer).flushed > 3)
        unsent = asyncio.ensure_future(peer.call(call(), b"unsent"))
        await asyncio.sleep(0)
        assert inside(peer).flushed == 5
        # The transport learns that the line is cut before the loop comes to send.
        inside(peer).connection_lost(None)
        for gone in (sent, stream.receive()):
            with pytest.raises(Broken, match="while the call was under way"):
                await gone
        with pytest.raises(Refused, match="before the call was sent"):
            await unsent
        with pytest.raises(Refused, match="is closing"):
            await peer.call(call(), b"x")
        inside(peer).kill()


async def test_a_call_that_waits_for_room_learns_that_the_line_broke(line: Line) -> None:
    """It had not been sent, and no answer will wake it."""
    async with raw.listening(f"{line.folder}/s", asleep) as address:
        peer = await line.peer(address)
        filling = await full(peer)
        waiting = [asyncio.ensure_future(peer.call(call(), b"x")) for _ in range(3)]
        waiting.append(asyncio.ensure_future(peer.open(call())))  # type: ignore[arg-type]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in waiting)
        inside(peer).kill()
        for task in waiting:
            with pytest.raises(Refused, match="is closing"):
                await asyncio.wait_for(task, 5)
        with pytest.raises(Broken):
            await filling
        assert peer.in_flight == 0


async def test_a_call_that_waits_for_room_has_its_deadline(line: Line) -> None:
    async with raw.listening(f"{line.folder}/s", asleep) as address:
        peer = await line.peer(address)
        filling = await full(peer)
        for verb in (peer.call(call(timeout=0.05), b"x"), peer.open(call(timeout=0.05))):
            with pytest.raises(Silent, match="took nothing before the deadline"):
                await verb
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
        await peer.close()


async def test_a_stream_that_waits_for_room_has_its_deadline(line: Line) -> None:
    async with raw.listening(f"{line.folder}/s", asleep) as address:
        peer = await line.peer(address)
        stream = await peer.open(call(timeout=0.2))
        filling = await full(peer)
        with pytest.raises(Silent, match="before the deadline"):
            await asyncio.wait_for(stream.send(b"x"), 5)
        stream.cancel()
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
        await peer.close()


async def test_calls_go_on_when_the_line_has_room_again(line: Line) -> None:
    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello(window=64 * MB, max_message=64 * MB))
        await begin.wait()
        for _ in range(20):
            frame = await peer.get(raw.REQUEST)
            peer.send(raw.data(frame.stream, b"answer", raw.END))
        await peer.rest()

    begin = asyncio.Event()
    async with raw.listening(f"{line.folder}/s", serve) as address:
        peer = await line.peer(address)
        calls = [asyncio.ensure_future(peer.call(call(), bytes(900_000))) for _ in range(20)]
        await eventually(lambda: inside(peer).paused)
        assert peer.in_flight < 20
        begin.set()
        assert await asyncio.gather(*calls) == [b"answer"] * 20
        await peer.close()


async def test_closing_a_peer_ends_its_calls(line: Line) -> None:
    async def hang(incoming: Incoming) -> None:
        await asyncio.Event().wait()

    server, peer = await line.pair(hang)
    calling = asyncio.ensure_future(peer.call(call(), b""))
    stream = await peer.open(call())
    await eventually(lambda: server.in_flight == 2)
    await peer.close()
    for gone in (calling, stream.receive(), stream.send(b"x")):
        with pytest.raises(Cancelled, match="closed here"):
            await gone
    await peer.close()  # again
    await asyncio.wait_for(peer.wait_closed(), 5)
    await eventually(lambda: server.in_flight == 0 and not server.connections)


async def test_who_waits_for_the_end_may_give_up_waiting(line: Line) -> None:
    async def hang(incoming: Incoming) -> None:
        await asyncio.Event().wait()

    server, peer = await line.pair(hang)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(peer.wait_closed(), 0.02)
    waiting = asyncio.ensure_future(peer.wait_closed())
    await server.close()
    await asyncio.wait_for(waiting, 5)
    assert peer.closed
