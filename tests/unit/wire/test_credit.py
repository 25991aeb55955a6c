"""Credit, frame by frame: who may send how much, and when more is given."""

from __future__ import annotations

import asyncio

import pytest

from micro_ray.wire.protocol import COST, Limits
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call

WINDOW = 4096
SMALL = Limits(max_frame=2048, max_message=100_000, window=WINDOW)


class Reader:
    """A handler that takes messages when it is told to."""

    def __init__(self) -> None:
        self.may = asyncio.Semaphore(0)
        self.taken: list[int] = []

    async def __call__(self, incoming: Incoming) -> None:
        await self.may.acquire()
        while (message := await incoming.receive()) is not None:
            self.taken.append(len(message))
            await self.may.acquire()
        await incoming.reply(b"done")

    def take(self, count: int) -> None:
        for _ in range(count):
            self.may.release()


async def quiet(caller: raw.Raw, cookie: bytes) -> list[raw.Frame]:
    """What came until now: everything before the answer to a PING."""
    caller.send(raw.frame(raw.PING, 0, 0, cookie))
    frames = []
    while (frame := await caller.next()).payload != cookie:
        frames.append(frame)
    return frames


def test_what_a_frame_costs() -> None:
    assert COST == 64


async def test_the_window_is_what_may_lie_unread(line: Line) -> None:
    reader = Reader()
    server, address = await line.server(reader, SMALL)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1, b"", raw.BARE))
        caller.send(*[raw.data(1, b"x" * (1024 - COST))] * 4)
        assert await quiet(caller, b"1") == []
        (connection,) = server.connections
        assert connection.buffered == WINDOW
        reader.take(1)
        await eventually(lambda: reader.taken == [960])
        assert await quiet(caller, b"2") == []  # given back in halves, not crumbs
        reader.take(1)
        window = await caller.get(raw.WINDOW)
        assert (window.stream, window.flags, window.number) == (1, 0, 2048)
        caller.send(*[raw.data(1, b"x" * (1024 - COST))] * 2)
        assert await quiet(caller, b"3") == []
        assert connection.buffered == WINDOW
        reader.take(5)
        assert (await caller.get(raw.WINDOW)).number == 2048
        assert (await caller.get(raw.WINDOW)).number == 2048
        assert connection.buffered == 0
        caller.send(raw.frame(raw.DATA, raw.END | raw.BARE, 1))
        assert (await caller.get(raw.DATA)).payload == b"done"
    assert reader.taken == [960] * 6


@pytest.mark.parametrize(
    "frames",
    [
        [raw.data(1, b"x" * 2048)] * 2,
        [raw.data(1, b"")] * 65,
        [raw.data(1, b"x" * (4096 - 63))],
        [raw.data(1, b"x"), *[raw.data(1, b"x" * 500, raw.MORE)] * 8],
    ],
    ids=["bytes", "empty messages", "one message", "parts behind a message"],
)
async def test_who_sends_beyond_its_credit_is_cut_off(line: Line, frames: list[bytes]) -> None:
    server, address = await line.server(Reader(), SMALL)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1, b"", raw.BARE), *frames)
        (error,) = await caller.rest()
        assert (error.kind, error.stream) == (raw.ERROR, 0)
        assert "stream 1: sent beyond its credit" in error.json["detail"]
    await eventually(lambda: server.in_flight == 0)


async def test_the_message_in_a_request_takes_credit_too(line: Line) -> None:
    _, address = await line.server(Reader(), SMALL)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1, b"x" * (2048 - COST), 0), raw.data(1, b"x" * (2048 - COST)))
        assert await quiet(caller, b"1") == []
        caller.send(raw.data(1))
        (error,) = await caller.rest()
        assert "beyond its credit" in error.json["detail"]


async def test_a_message_larger_than_the_window_goes_through(line: Line) -> None:
    """Its parts are given back as they come, while nothing else waits to be taken."""
    reader = Reader()
    _, address = await line.server(reader, SMALL)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1, b"", raw.BARE))
        credit, sent = WINDOW, 0
        while sent < 50_000:
            if credit < 1000 + COST:
                credit += (await caller.get(raw.WINDOW)).number
            caller.send(raw.data(1, b"x" * 1000, raw.MORE))
            credit -= 1000 + COST
            sent += 1000
        caller.send(raw.data(1, b"end"))
        reader.take(1)
        await eventually(lambda: reader.taken == [50_003])


async def test_parts_behind_a_message_wait_for_it(line: Line) -> None:
    reader = Reader()
    server, address = await line.server(reader, SMALL)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1, b"first", 0))
        for _ in range(3):
            caller.send(raw.data(1, b"x" * 1000, raw.MORE))
        assert await quiet(caller, b"1") == []  # nothing is given back for them
        reader.take(1)
        await eventually(lambda: reader.taken == [5])
        total = 5 + COST + 3 * (1000 + COST)
        assert (await caller.get(raw.WINDOW)).number == total
        caller.send(raw.data(1, b"y", raw.END))
        reader.take(2)
        assert (await caller.get(raw.DATA)).payload == b"done"
        assert reader.taken == [5, 3001]
        (connection,) = server.connections
        assert connection.buffered == 0


async def test_a_server_sends_no_more_than_its_credit(line: Line) -> None:
    sent = 0

    async def pour(incoming: Incoming) -> None:
        nonlocal sent
        for size in (0, 500, 5000, 3):
            await incoming.send(b"x" * size)
            sent += 1

    _, address = await line.server(pour)
    async with raw.caller(address, window=1024, max_frame=1024, max_message=8192) as caller:
        caller.send(raw.request(1))
        frames = [await caller.get(raw.DATA) for _ in range(3)]
        # 1024 = 64 + (500 + 64) + (332 + 64)
        assert [(f.flags, len(f.payload)) for f in frames] == [(0, 0), (0, 500), (raw.MORE, 332)]
        assert await quiet(caller, b"1") == []
        caller.send(raw.window(1, 64))  # not enough for one byte
        assert await quiet(caller, b"2") == []
        caller.send(raw.window(1, 1))
        assert (await caller.get(raw.DATA)).payload == b"x"
        assert sent == 2
        caller.send(raw.window(1, 10_000))
        got = 333
        while got < 5000:
            part = await caller.get(raw.DATA)
            assert len(part.payload) <= 1024
            got += len(part.payload)
        assert (await caller.get(raw.DATA)).payload == b"xxx"
        end = await caller.get(raw.DATA)
        assert (end.flags, end.payload) == (raw.END | raw.BARE, b"")
        assert sent == 4


async def test_credit_without_bounds_is_an_error(line: Line) -> None:
    _, address = await line.server(Reader())
    async with raw.caller(address, window=1024) as caller:
        caller.send(raw.request(1, b"", raw.BARE), raw.window(1, 2**31 - 1 - 1024))
        assert await quiet(caller, b"1") == []
        caller.send(raw.window(1, 1))
        (error,) = await caller.rest()
        assert "credit beyond 2147483647" in error.json["detail"]


async def test_credit_for_what_has_ended_is_nothing(line: Line) -> None:
    _, address = await line.server(Reader())
    async with raw.caller(address) as caller:
        caller.send(raw.request(1, b"", raw.BARE), raw.frame(raw.CANCEL, 0, 1))
        caller.send(raw.window(1, 5), raw.window(1, 0))
        assert await quiet(caller, b"1") == []


async def test_a_caller_counts_its_credit(line: Line) -> None:
    """The mirror of the above: what our caller sends to a server of little credit."""
    frames: list[raw.Frame] = []
    more = asyncio.Event()

    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello(window=1024, max_frame=1024, max_message=8192))
        frames.append(await peer.get(raw.REQUEST))
        frames.append(await peer.get(raw.DATA))
        with pytest.raises(TimeoutError):
            await peer.next(within=0.05)
        peer.send(raw.window(1, 10_000))
        frames.extend([await peer.get(raw.DATA) for _ in range(3)])
        peer.send(raw.data(1, b"answer", raw.END))
        await more.wait()

    async with raw.listening(f"{line.folder}/s", serve) as address:
        peer = await line.peer(address)
        assert await peer.call(call(), b"x" * 3000) == b"answer"
        more.set()
    flags = [raw.BARE, raw.MORE, raw.MORE, 0, raw.END | raw.BARE]
    assert [f.flags for f in frames] == flags
    assert [len(f.payload) for f in frames[1:]] == [960, 1024, 1016, 0]


async def test_credit_for_a_long_answer_is_given_part_by_part(line: Line) -> None:
    given: list[int] = []

    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello())
        await peer.get(raw.REQUEST)
        for _ in range(10):
            peer.send(raw.data(1, b"x" * 1000, raw.MORE))
            given.append((await peer.get(raw.WINDOW)).number)
        peer.send(raw.data(1, b"end", raw.END))
        await peer.rest()

    async with raw.listening(f"{line.folder}/s", serve) as address:
        peer = await line.peer(address, SMALL)
        assert await peer.call(call(), b"") == b"x" * 10_000 + b"end"
        await peer.close()
    assert given == [1000 + COST] * 10
