"""Calls of all four kinds over every kind of line."""

from __future__ import annotations

import asyncio
import os
import stat

import pytest

from micro_ray.errors import BadGateway, BadRequest, NotFound
from micro_ray.network import Call, Peer, Stream
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Incoming
from tests.unit.wire.line import Line, call


async def handler(incoming: Incoming) -> None:
    """Endpoints by hand: what a handler may do with a call."""
    match incoming.head.endpoint:
        case "Echo.Call":
            await incoming.reply(await incoming.receive() or b"")
        case "Echo.Nothing":
            pass
        case "Echo.Count":
            for number in range(int(await incoming.receive() or b"0")):
                await incoming.send(b"%d" % number)
        case "Echo.Sum":
            total = 0
            while (message := await incoming.receive()) is not None:
                total += int(message)
            await incoming.reply(b"%d" % total)
        case "Echo.Double":
            while (message := await incoming.receive()) is not None:
                await incoming.send(message * 2)
        case "Echo.Twice":
            message = await incoming.receive() or b""
            await incoming.send(message)
            await incoming.send(message)
        case "Echo.Breaks":
            await incoming.send(b"one")
            raise NotFound("echo", "no more", 2.5)
        case endpoint:
            raise NotFound("echo", f"no {endpoint}")


async def everything(stream: Stream) -> list[bytes]:
    return [message async for message in stream]


async def test_unary(any_line: Line) -> None:
    server, peer = await any_line.pair(handler)
    for body in (b"", b"x", b"x" * 100_000):
        assert await peer.call(call(), body) == body
    assert (peer.in_flight, server.in_flight) == (0, 0)


async def test_a_service_streams(any_line: Line) -> None:
    _, peer = await any_line.pair(handler)
    async with await peer.open(call(endpoint="Echo.Count")) as stream:
        await stream.send(b"1000")
        await stream.end()
        assert await everything(stream) == [b"%d" % n for n in range(1000)]
        assert await stream.receive() is None  # the end stays the end


async def test_a_caller_streams(any_line: Line) -> None:
    _, peer = await any_line.pair(handler)
    async with await peer.open(call(endpoint="Echo.Sum")) as stream:
        for number in range(1000):
            await stream.send(b"%d" % number)
        await stream.end()
        assert await everything(stream) == [b"499500"]


async def test_both_stream(any_line: Line) -> None:
    _, peer = await any_line.pair(handler)
    async with await peer.open(call(endpoint="Echo.Double")) as stream:
        for number in range(100):
            await stream.send(b"%d," % number)
            assert await stream.receive() == b"%d,%d," % (number, number)
        await stream.end()
        assert await stream.receive() is None


async def test_an_empty_message_is_one(line: Line) -> None:
    _, peer = await line.pair(handler)
    async with await peer.open(call(endpoint="Echo.Double")) as stream:
        await stream.send(b"")
        assert await stream.receive() == b""
        await stream.end()
        assert await stream.receive() is None
    async with await peer.open(call(endpoint="Echo.Sum")) as stream:
        await stream.end()  # not even one
        assert await everything(stream) == [b"0"]


async def test_errors_have_their_fields(any_line: Line) -> None:
    _, peer = await any_line.pair(handler)
    with pytest.raises(NotFound) as caught:
        await peer.call(call(endpoint="Echo.Other"), b"")
    assert (caught.value.id, caught.value.detail) == ("echo", "no Echo.Other")
    async with await peer.open(call(endpoint="Echo.Breaks")) as stream:
        assert await stream.receive() == b"one"  # what came before comes first
        for _ in range(2):
            with pytest.raises(NotFound, match="no more") as caught:
                await stream.receive()
        assert caught.value.retry_after == 2.5
        with pytest.raises(NotFound, match="no more"):
            await stream.send(b"x")
        await stream.end()  # no error: there is nothing left to end


async def test_the_head_arrives_as_it_was_sent(line: Line) -> None:
    heads: list[Call] = []

    async def keep(incoming: Incoming) -> None:
        heads.append(incoming.call)
        await incoming.reply(incoming.peer.encode())

    _, peer = await line.pair(keep)
    sent = call(timeout=5.0, content="text/plain", metadata={"traceparent": "00-1", "ä": "\u2028"})
    assert await peer.call(sent, b"") == b""  # no address: a Unix socket
    assert await peer.call(call(), b"") == b""
    assert heads[0].metadata == sent.metadata
    assert (heads[0].service, heads[0].endpoint) == ("echo", "Echo.Call")
    assert heads[0].content == "text/plain"
    assert heads[0].timeout is not None
    assert 4.5 < heads[0].timeout <= 5.01
    assert (heads[1].timeout, heads[1].metadata) == (None, {})


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_the_caller_has_an_address_over_tcp(line: Line, host: str) -> None:
    async def who(incoming: Incoming) -> None:
        await incoming.reply(incoming.peer.encode())

    server, _ = await line.server(who)
    try:
        address = await server.listen(f"tcp:{host}:0")
    except Exception as error:
        pytest.skip(f"cannot listen on {host}: {error}")
    assert address.startswith("tcp:[::1]:" if "::1" in host else "tcp:127.0.0.1:")
    peer = await line.peer(address)
    said = (await peer.call(call(), b"")).decode()
    assert said.startswith(address.rpartition(":")[0])
    assert said != address
    assert said in server.peers


async def test_a_handler_that_says_nothing(line: Line) -> None:
    _, peer = await line.pair(handler)
    with pytest.raises(BadGateway, match="without an answer"):
        await peer.call(call(endpoint="Echo.Nothing"), b"")
    with pytest.raises(BadGateway, match="without an answer"):
        await peer.call(call(endpoint="Echo.Nothing"), b"x" * 500_000)
    async with await peer.open(call(endpoint="Echo.Nothing")) as stream:
        assert await everything(stream) == []


@pytest.mark.parametrize("size", [0, 500_000])
async def test_a_stream_is_no_answer(line: Line, size: int) -> None:
    """Who calls where a stream comes back is told so; the stream is given up."""
    _, peer = await line.pair(handler)
    with pytest.raises(BadRequest, match="open it as one"):
        await peer.call(call(endpoint="Echo.Twice"), b"x" * size)
    assert peer.in_flight == 0
    assert await peer.call(call(), b"still here") == b"still here"


async def test_one_answer_can_be_received_as_a_stream(line: Line) -> None:
    _, peer = await line.pair(handler)
    async with await peer.open(call()) as stream:
        await stream.send(b"hello")
        await stream.end()
        assert await everything(stream) == [b"hello"]


async def test_a_server_on_many_addresses_is_one(line: Line) -> None:
    server, first = await line.server(handler)
    second = await server.listen(f"unix:{line.folder}/second.sock")
    third = await server.listen("tcp:127.0.0.1:0")
    peers: list[Peer] = [await line.peer(address) for address in (first, second, third)]
    assert [await peer.call(call(), b"x") for peer in peers] == [b"x"] * 3
    assert len(server.connections) == 3
    assert stat.S_IMODE(os.stat(f"{line.folder}/second.sock").st_mode) == 0o600


async def test_dialers_with_limits_of_their_own(line: Line) -> None:
    """The smallest peer there is, on either side."""
    small = Limits(max_frame=1024, max_message=1024, max_header=1024, window=1024)
    _, address = await line.server(handler)
    _, narrow = await line.server(handler, small)
    for peer in (
        await line.peer(address, small),
        await line.peer(narrow),
        await line.peer(narrow, small),
    ):
        assert await peer.call(call(), b"x" * 1024) == b"x" * 1024


async def test_peers_from_many_dialers_and_loops_turns(line: Line) -> None:
    _, address = await line.server(handler)
    dialer = WireDialer()
    peers = await asyncio.gather(*(dialer.dial(address, timeout=5) for _ in range(50)))
    answers = await asyncio.gather(*(p.call(call(), b"%d" % n) for n, p in enumerate(peers)))
    assert answers == [b"%d" % n for n in range(50)]
    await asyncio.gather(*(peer.close() for peer in peers))
