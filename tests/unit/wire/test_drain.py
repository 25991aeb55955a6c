"""A node goes away and no call is lost."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from micro_ray.network import Refused
from micro_ray.network.network import Network
from micro_ray.router import Delta, Route
from micro_ray.router.table import Table
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.server import Incoming, Server
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call


class Gate:
    """A handler that answers when the gate is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.started: list[bytes] = []

    async def __call__(self, incoming: Incoming) -> None:
        body = await incoming.receive() or b""
        self.started.append(body)
        await self.open.wait()
        await incoming.reply(body)


async def test_calls_in_flight_end_well_and_new_ones_are_refused(any_line: Line) -> None:
    gate = Gate()
    server, address = await any_line.server(gate)
    peer = await any_line.peer(address)
    calls = [asyncio.ensure_future(peer.call(call(), b"%d" % n)) for n in range(10)]
    await eventually(lambda: len(gate.started) == 10)
    draining = asyncio.ensure_future(server.drain(5))
    await eventually(lambda: peer.closed)
    for verb in (peer.call(call(), b"new"), peer.open(call())):
        with pytest.raises(Refused, match="is closing"):
            await verb
    with pytest.raises(Refused, match="cannot reach"):
        await any_line.peer(address)
    assert not draining.done()
    gate.open.set()
    assert await asyncio.gather(*calls) == [b"%d" % n for n in range(10)]
    assert await draining is True
    await asyncio.wait_for(peer.wait_closed(), 5)  # the caller leaves by itself
    assert b"new" not in gate.started


async def test_streams_in_flight_end_well(line: Line) -> None:
    async def double(incoming: Incoming) -> None:
        while (message := await incoming.receive()) is not None:
            await incoming.send(message)

    server, peer = await line.pair(double)
    async with await peer.open(call()) as stream:
        await stream.send(b"one")
        assert await stream.receive() == b"one"
        draining = asyncio.ensure_future(server.drain(5))
        await eventually(lambda: peer.closed)
        for word in (b"two", b"x" * 500_000):
            sending = asyncio.ensure_future(stream.send(word))
            assert await stream.receive() == word
            await sending
        await stream.end()
        assert await stream.receive() is None
    assert await draining is True


async def test_what_was_on_its_way_is_refused_as_not_executed(line: Line) -> None:
    """GOAWAY names the last stream that was taken; later ones get a refusal, each."""
    gate = Gate()
    server, address = await line.server(gate)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1, b"first"))
        await eventually(lambda: gate.started)
        draining = asyncio.ensure_future(server.drain(5))
        goaway = await caller.get(raw.GOAWAY)
        assert (goaway.flags, goaway.stream, goaway.payload) == (0, 1, b"")
        caller.send(raw.request(3, b"late"), raw.request(5, b"later", raw.MORE))
        for stream in (3, 5):
            refusal = await caller.get(raw.ERROR)
            assert (refusal.stream, refusal.json["refused"]) == (stream, True)
            assert refusal.json["code"] == 503
        gate.open.set()
        assert (await caller.get(raw.DATA)).payload == b"first"
        assert not draining.done()  # the caller has not left
    assert await draining is True
    assert gate.started == [b"first"]


async def test_a_caller_knows_at_once_what_was_not_taken(line: Line) -> None:
    """It need not wait for the refusals."""
    answer = asyncio.Event()

    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello())
        for _ in range(3):
            await peer.get(raw.REQUEST)
        peer.send(raw.frame(raw.GOAWAY, 0, 1))
        await answer.wait()
        refusal = b'{"code":503,"refused":true}'
        peer.send(raw.frame(raw.ERROR, raw.END, 3, refusal))  # passed over
        peer.send(raw.data(1, b"answer", raw.END))
        assert await peer.rest() == []  # it leaves when its last call has ended

    async with raw.listening(f"{line.folder}/s", serve) as address:
        peer = await line.peer(address)
        calls = [asyncio.ensure_future(peer.call(call(), b"")) for _ in range(2)]
        await asyncio.sleep(0)
        stream = await peer.open(call())
        for refused in (calls[1], stream.receive()):
            with pytest.raises(Refused, match="the node is going away"):
                await refused
        assert (peer.in_flight, peer.closed) == (1, True)
        answer.set()
        assert await calls[0] == b"answer"
        await asyncio.wait_for(peer.wait_closed(), 5)


async def test_an_idle_caller_leaves_at_once(line: Line) -> None:
    server, _ = await line.pair(Gate())
    begun = time.monotonic()
    assert await server.drain(50) is True
    assert time.monotonic() - begun < PROMPT


async def test_a_drain_has_an_end(line: Line) -> None:
    """False when calls are left, True when only callers are that will not go."""
    gate = Gate()
    server, peer = await line.pair(gate)
    calling = asyncio.ensure_future(peer.call(call(), b"x"))
    await eventually(lambda: gate.started)
    assert await server.drain(0.05) is False
    gate.open.set()
    assert await calling == b"x"
    assert await server.drain(5) is True

    stubborn, address = await line.server(gate)
    async with raw.caller(address):
        assert await stubborn.drain(0.05) is True


async def test_who_greets_during_a_drain_is_told_after_its_hello(line: Line) -> None:
    server, address = await line.server(Gate())
    async with raw.connected(address) as caller:
        await eventually(lambda: server.connections)
        draining = asyncio.ensure_future(server.drain(5))
        await asyncio.sleep(0.01)
        await caller.greet()
        assert (await caller.next()).kind == raw.GOAWAY
    assert await draining is True


async def test_a_drain_waits_for_handlers_whose_caller_has_gone(line: Line) -> None:
    tidy = asyncio.Event()

    async def tidies_up(incoming: Incoming) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await tidy.wait()

    server, address = await line.server(tidies_up)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1))
        await eventually(lambda: server.in_flight == 1)
    await eventually(lambda: not server.connections)
    draining = asyncio.ensure_future(server.drain(5))
    await asyncio.sleep(0.02)
    assert not draining.done()
    tidy.set()
    assert await draining is True


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_call_is_lost_while_nodes_come_and_go(line: Line, seed: int) -> None:
    """Sixteen callers of one network, three nodes that are replaced one after the other for as long
    as they call: everything is answered once, although none of it may be executed twice."""
    rand = random.Random(seed)
    executed: list[bytes] = []

    async def serve(incoming: Incoming) -> None:
        body = await incoming.receive() or b""
        await asyncio.sleep(rand.random() * 0.004)
        executed.append(body)
        await incoming.reply(body)

    table, nodes, revision = Table(), dict[str, tuple[Server, Route]](), 0

    def publish() -> None:
        nonlocal revision
        revision += 1
        routes = tuple(route for _, route in nodes.values())
        table.apply(Delta(epoch="1", revision=revision, full=True, routes=routes))

    async def start(number: int) -> None:
        server, address = await line.server(serve)
        route = Route(
            id=f"n{number}", namespace="micro", service="echo", addresses=(address,)
        )  # fmt: skip
        nodes[route.id] = (server, route)

    for number in range(3):
        await start(number)
    publish()
    network = Network(table, WireDialer())
    running = True

    async def caller(name: int) -> int:
        made = 0
        while running:
            body = b"%d-%d" % (name, made)
            assert await network.call("echo", "Echo.Call", body) == body
            made += 1
        return made

    callers = [asyncio.ensure_future(caller(name)) for name in range(16)]
    try:
        for number in range(3, 13):
            await start(number)
            publish()
            await asyncio.sleep(0.02)
            oldest = next(iter(nodes))
            server, _ = nodes.pop(oldest)
            if rand.random() < 0.5:
                publish()  # in good order; else the callers hear it from the node alone
            assert await server.drain(5) is True
            await server.close()
        publish()
    finally:
        running = False
        made = await asyncio.gather(*callers)
        await network.close()
    assert sum(made) > 200
    assert len(executed) == len(set(executed)) == sum(made)
