"""Counts and sizes: what is over its bound is refused by name, and nothing else suffers."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from micro_ray.errors import BadRequest, HeadersTooLarge
from micro_ray.network import Refused
from micro_ray.wire.client import ClientConnection
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call


class Held:
    """A handler that answers when it may; ``bodies`` are what it was called with."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.bodies: list[bytes] = []

    async def __call__(self, incoming: Incoming) -> None:
        self.bodies.append(await incoming.receive() or b"")
        await self.go.wait()
        await incoming.reply(b"answer")


async def test_streams_of_one_connection(line: Line) -> None:
    handler = Held()
    server, peer = await line.pair(handler, limits=Limits(max_streams=3))
    calls = [asyncio.ensure_future(peer.call(call(), b"%d" % n)) for n in range(3)]
    await eventually(lambda: len(handler.bodies) == 3)
    with pytest.raises(Refused, match="3 calls on one connection") as caught:
        await peer.call(call(), b"one too many")
    assert caught.value.retry_after == 0.1
    async with await peer.open(call()) as stream:
        with pytest.raises(Refused, match="3 calls on one connection"):
            await stream.receive()
    handler.go.set()
    assert await asyncio.gather(*calls) == [b"answer"] * 3
    assert await peer.call(call(), b"again") == b"answer"
    assert b"one too many" not in handler.bodies
    assert server.in_flight == 0


async def test_what_follows_a_refused_request_is_passed_over(line: Line) -> None:
    """The caller had sent more of it before it knew."""
    handler = Held()
    _, address = await line.server(handler, Limits(max_streams=1))
    async with raw.caller(address) as caller:
        caller.send(raw.request(1), raw.request(3, b"x", raw.MORE))
        caller.send(raw.data(3, b"y" * 1000), raw.data(3, b"", raw.END | raw.BARE))
        caller.send(raw.frame(raw.CANCEL, 0, 3), raw.window(3, 5))
        refusal = await caller.get(raw.ERROR)
        assert (refusal.stream, refusal.flags) == (3, raw.END)
        assert refusal.json["refused"] is True
        assert refusal.json["code"] == 503
        handler.go.set()
        assert (await caller.get(raw.DATA)).stream == 1
    assert handler.bodies == [b""]


async def test_connections_of_one_server(line: Line) -> None:
    handler = Held()
    handler.go.set()
    server, address = await line.server(handler, max_connections=2)
    first, second = await line.peer(address), await line.peer(address)
    with pytest.raises(Refused, match=r"2 connections are open here; no more are taken"):
        await line.peer(address)
    assert len(server.connections) == 2
    assert await first.call(call(), b"") == b"answer"
    await second.close()
    await eventually(lambda: len(server.connections) == 1)
    third = await line.peer(address)
    assert await third.call(call(), b"") == b"answer"


async def test_a_header_over_its_limit_is_the_fault_of_its_call(line: Line) -> None:
    handler = Held()
    handler.go.set()
    _, address = await line.server(handler, Limits(max_header=2000))
    async with raw.caller(address) as caller:
        just = json.dumps({"service": "s", "endpoint": "E.M", "metadata": {"k": ""}}).encode()
        just = just.replace(b'""', b'"%b"' % (b"x" * (2000 - len(just))))
        assert len(just) == 2000
        caller.send(raw.request(1, b"one", header=just))
        assert (await caller.get(raw.DATA)).payload == b"answer"
        caller.send(raw.request(3, b"two", header=just + b" "))
        error = await caller.get(raw.ERROR)
        assert (error.stream, error.json["code"]) == (3, 431)
        assert error.json["detail"] == "the call's head has 2001 bytes; 2000 allowed"
        caller.send(raw.request(5, b"three"))
        assert (await caller.get(raw.DATA)).stream == 5
    assert handler.bodies == [b"one", b"three"]


async def test_a_caller_knows_how_large_a_header_may_be(line: Line) -> None:
    """It does not send what would be refused, and what a u16 cannot count."""
    handler = Held()
    handler.go.set()
    _, address = await line.server(handler, Limits(max_header=2000))
    _, roomy = await line.server(handler)
    for peer, size in ((await line.peer(address), 2000), (await line.peer(roomy), 65_535)):
        metadata = {"k": "x" * size}
        with pytest.raises(HeadersTooLarge, match=f"{size} allowed. Send less metadata"):
            await peer.call(call(metadata=metadata), b"")
        with pytest.raises(HeadersTooLarge, match=f"{size} allowed"):
            await peer.open(call(metadata=metadata))
        assert peer.in_flight == 0
        assert await peer.call(call(metadata={"k": "x" * (size - 200)}), b"") == b"answer"
    assert len(handler.bodies) == 2


@pytest.mark.parametrize("bad", [{"k": object()}, {"\udc00": "x"}], ids=["no text", "half a pair"])
async def test_a_head_that_cannot_be_written_breaks_nothing(
    line: Line, bad: dict[str, Any]
) -> None:
    handler = Held()
    server, peer = await line.pair(handler)
    waiting = asyncio.ensure_future(peer.call(call(), b""))
    await eventually(lambda: handler.bodies)
    for verb in (peer.call(call(metadata=bad), b""), peer.open(call(metadata=bad))):
        with pytest.raises(BadRequest, match="head cannot be sent"):
            await verb
    assert peer.in_flight == 1
    handler.go.set()
    assert await waiting == b"answer"
    assert len(server.connections) == 1


async def test_a_head_of_wrong_types_breaks_nothing(line: Line) -> None:
    """A number is JSON, but no metadata: the server says so, to this call alone."""
    handler = Held()
    _, peer = await line.pair(handler)
    waiting = asyncio.ensure_future(peer.call(call(), b""))
    await eventually(lambda: handler.bodies)
    with pytest.raises(BadRequest, match=r"Expected `str`, got `int` - at `\$.metadata"):
        await peer.call(call(metadata={"k": 5}), b"")
    handler.go.set()
    assert await waiting == b"answer"


async def test_stream_ids_end(line: Line) -> None:
    """The connection takes its last call, and says that it is used up."""
    handler = Held()
    server, peer = await line.pair(handler)
    connection: ClientConnection = peer._connection  # type: ignore[attr-defined]
    connection.next = 2**32 - 5
    calls = [asyncio.ensure_future(peer.call(call(), b"%d" % n)) for n in range(2)]
    await eventually(lambda: len(handler.bodies) == 2)
    assert peer.closed
    with pytest.raises(Refused, match="is closing"):
        await peer.call(call(), b"")
    handler.go.set()
    assert await asyncio.gather(*calls) == [b"answer"] * 2
    await asyncio.wait_for(peer.wait_closed(), 5)
    await eventually(lambda: not server.connections)


async def test_what_is_logged_of_a_refusal(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    _, address = await line.server(Held(), max_connections=0)
    with caplog.at_level(logging.INFO, "micro_ray"), pytest.raises(Refused):
        await line.peer(address)
    assert "no more are taken" in caplog.text
