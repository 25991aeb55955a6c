"""Deadlines end the work on both sides."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from micro_ray.errors import Cancelled, Timeout
from micro_ray.network import Call, Silent, Stream
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call


class Slow:
    """Handlers that take their time, and what became of them."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.left: list[float | None] = []
        self.stubborn = asyncio.Event()

    async def __call__(self, incoming: Incoming) -> None:
        self.started += 1
        self.left.append(incoming.call.timeout)
        try:
            match incoming.head.endpoint:
                case "Slow.Stubborn":
                    await self._stubbornly()
                case "Slow.Pours":
                    while True:
                        await incoming.send(b"x" * 1000)
                case "Slow.Listens":
                    while await incoming.receive() is not None:
                        pass
                case _:
                    await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _stubbornly(self) -> None:
        """Tidies up for as long as the test likes."""
        try:
            await asyncio.Event().wait()
        finally:
            await self.stubborn.wait()


async def everything(stream: Stream) -> list[bytes]:
    return [message async for message in stream]


def slow(endpoint: str = "Slow.Call", timeout: float = 0.05) -> Call:
    return call(service="slow", endpoint=endpoint, timeout=timeout)


async def test_a_caller_waits_no_longer_and_the_handler_ends(any_line: Line) -> None:
    handler = Slow()
    server, peer = await any_line.pair(handler)
    begun = time.monotonic()
    with pytest.raises(Silent, match=r"no answer from .* before the deadline"):
        await peer.call(slow(timeout=0.1), b"")
    assert 0.095 < time.monotonic() - begun < PROMPT
    await eventually(lambda: handler.cancelled == 1)
    assert (peer.in_flight, server.in_flight) == (0, 0)


@pytest.mark.parametrize("endpoint", ["Slow.Call", "Slow.Pours", "Slow.Listens"])
async def test_streams_have_deadlines_too(line: Line, endpoint: str) -> None:
    handler = Slow()
    server, peer = await line.pair(handler)
    async with await peer.open(slow(endpoint)) as stream:
        with pytest.raises(Silent):
            await everything(stream)
        with pytest.raises(Silent):
            await stream.send(b"x")
    await eventually(lambda: handler.cancelled == 1 and server.in_flight == 0)


async def test_a_sender_that_waits_for_credit_is_woken(line: Line) -> None:
    handler = Slow()
    _, peer = await line.pair(handler, limits=Limits(window=1024))
    async with await peer.open(slow()) as stream:
        await stream.send(b"one that nobody takes")
        with pytest.raises(Silent):
            await stream.send(bytes(100_000))
    await eventually(lambda: handler.cancelled == 1)


async def test_the_server_ends_the_work_by_itself(line: Line) -> None:
    """A caller that does not look at its clock is told, once, and the handler is cancelled."""
    handler = Slow()
    server, address = await line.server(handler)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1, b"", timeout_ms=50, endpoint="Slow.Call"))
        error = await caller.get(raw.ERROR)
        assert error.stream == 1
        assert (error.json["code"], error.json["id"]) == (408, "echo")
        await eventually(lambda: handler.cancelled == 1 and not server.in_flight)
        caller.send(raw.frame(raw.PING))
        assert (await caller.get(raw.PING)).flags == raw.ACK  # nothing came in between


async def test_each_of_many_deadlines(line: Line) -> None:
    handler = Slow()
    server, peer = await line.pair(handler)
    begun = time.monotonic()

    async def one(timeout: float) -> float:
        with pytest.raises(Silent):
            await peer.call(slow(timeout=timeout), b"")
        return time.monotonic() - begun - timeout

    # Later ones first: an earlier deadline moves the clock forward.
    late = await asyncio.gather(*(one(0.5 - n * 0.001) for n in range(250)))
    assert all(-0.005 < seconds < PROMPT for seconds in late)
    await eventually(lambda: server.in_flight == 0)
    # On a busy machine some handlers have not begun by then; they never do.
    assert handler.cancelled == handler.started


async def test_a_handler_that_tidies_up_is_cancelled_once(line: Line) -> None:
    """Others' deadlines pass, the caller goes away: it is left alone. It counts as in flight until
    it has ended, and what it does then reaches nobody."""
    handler = Slow()
    server, address = await line.server(handler)
    peer = await line.peer(address)
    with pytest.raises(Silent):
        await peer.call(slow("Slow.Stubborn"), b"")
    for _ in range(5):
        with pytest.raises(Silent):
            await peer.call(slow(timeout=0.01), b"")
    await eventually(lambda: (server.in_flight, handler.cancelled) == (1, 5))
    await peer.close()
    await eventually(lambda: not server.connections)
    assert (server.in_flight, handler.cancelled) == (1, 5)
    handler.stubborn.set()
    await eventually(lambda: server.in_flight == 0 and handler.cancelled == 6)
    assert not server.leaving


@pytest.mark.parametrize("timeout", [0.0, -1.0, -math.inf, math.nan])
async def test_a_deadline_that_has_passed_sends_nothing(line: Line, timeout: float) -> None:
    handler = Slow()
    _, peer = await line.pair(handler)
    with pytest.raises(Timeout, match="had passed before the call was sent"):
        await peer.call(slow(timeout=timeout), b"")
    with pytest.raises(Timeout, match="had passed before the call was sent"):
        await peer.open(slow(timeout=timeout))
    assert (handler.started, peer.in_flight) == (0, 0)


@pytest.mark.parametrize("timeout", [math.inf, 1e30, 2.0**32 / 1000])
async def test_a_deadline_beyond_all_is_none(line: Line, timeout: float) -> None:
    handler = Slow()
    server, peer = await line.pair(handler)
    async with await peer.open(slow(timeout=timeout)):
        await eventually(lambda: handler.left == [None])
    await eventually(lambda: not server.in_flight)


async def test_the_longest_deadline(line: Line) -> None:
    """Neither loop's timers overflow."""
    handler = Slow()
    server, peer = await line.pair(handler)
    async with await peer.open(slow(timeout=2.0**32 / 1000 - 1)):
        await eventually(lambda: handler.left)
        assert handler.left[0] == pytest.approx(2**32 / 1000, rel=1e-6)
        with pytest.raises(Silent):
            await peer.call(slow(timeout=0.05), b"")
    await eventually(lambda: not server.in_flight)


async def test_an_answer_that_comes_too_late_is_nobodys(line: Line) -> None:
    answered = asyncio.Event()

    async def late(incoming: Incoming) -> None:
        if incoming.head.endpoint == "Slow.Call":
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                with pytest.raises((Timeout, Cancelled)):
                    await incoming.reply(b"late")
                answered.set()
            return
        await incoming.reply(b"other")

    _, peer = await line.pair(late)
    with pytest.raises(Silent):
        await peer.call(slow(), b"")
    await asyncio.wait_for(answered.wait(), 5)
    assert await peer.call(call(), b"") == b"other"
