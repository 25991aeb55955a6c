"""A call is given up: by its caller, by its handler, by the end of the line."""

from __future__ import annotations

import asyncio
import logging

import pytest

from micro_ray.errors import Cancelled
from micro_ray.network import Refused, Stream
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call

SMALL = Limits(max_frame=1024, window=1024)


class Watched:
    """A handler that waits, or pours, or listens, and notes how it ends."""

    def __init__(self) -> None:
        self.started = 0
        self.ended: list[str] = []

    async def __call__(self, incoming: Incoming) -> None:
        self.started += 1
        try:
            match incoming.head.endpoint:
                case "Echo.Pour":
                    while True:
                        await incoming.send(b"x" * 5000)
                case "Echo.Listen":
                    while await incoming.receive() is not None:
                        pass
                case "Echo.Quick":
                    await incoming.reply(b"quick")
                    return
                case _:
                    await asyncio.Event().wait()
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("by itself")


KINDS = ["Echo.Call", "Echo.Pour", "Echo.Listen"]


@pytest.mark.parametrize("endpoint", KINDS)
async def test_leaving_a_stream_cancels_its_handler(any_line: Line, endpoint: str) -> None:
    handler = Watched()
    server, peer = await any_line.pair(handler)
    async with await peer.open(call(endpoint=endpoint)) as stream:
        await stream.send(b"x")
        await eventually(lambda: handler.started == 1)
    assert peer.in_flight == 0
    await eventually(lambda: handler.ended == ["CancelledError"])
    await eventually(lambda: server.in_flight == 0)
    assert not peer.closed


async def test_cancelling_a_call_cancels_its_handler(any_line: Line) -> None:
    handler = Watched()
    server, peer = await any_line.pair(handler)
    for body in (b"", bytes(500_000)):
        calling = asyncio.ensure_future(peer.call(call(timeout=60), body))
        await eventually(lambda: server.in_flight == 1)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert peer.in_flight == 0
        await eventually(lambda: server.in_flight == 0)
    assert handler.ended == ["CancelledError"] * 2
    assert await peer.call(call(endpoint="Echo.Quick"), b"") == b"quick"


async def test_cancel_is_idempotent_and_what_follows_says_so(line: Line) -> None:
    handler = Watched()
    _, peer = await line.pair(handler, caller=SMALL)
    stream = await peer.open(call(endpoint="Echo.Pour"))
    assert await stream.receive() == b"x" * 5000
    receiving = asyncio.ensure_future(_receive_all(stream))
    await asyncio.sleep(0)
    for _ in range(3):
        stream.cancel()
    with pytest.raises(Cancelled, match="given up"):
        await receiving
    with pytest.raises(Cancelled, match="given up"):
        await stream.receive()
    with pytest.raises(Cancelled, match="given up"):
        await stream.send(b"x")
    await stream.end()
    await eventually(lambda: handler.ended == ["CancelledError"])


async def _receive_all(stream: Stream) -> None:
    while await stream.receive() is not None:
        pass


async def test_a_sender_that_waits_is_woken_by_cancel(line: Line) -> None:
    _, peer = await line.pair(Watched(), limits=SMALL)
    stream = await peer.open(call())
    await stream.send(b"one that nobody takes")
    sending = asyncio.ensure_future(stream.send(bytes(10_000)))
    await asyncio.sleep(0.01)
    assert not sending.done()
    stream.cancel()
    with pytest.raises(Cancelled, match="given up"):
        await sending


async def test_after_the_end_nothing_is_left_to_cancel(line: Line) -> None:
    server, address = await line.server(Watched())
    peer = await line.peer(address)
    async with await peer.open(call(endpoint="Echo.Quick")) as stream:
        assert await stream.receive() == b"quick"
        assert await stream.receive() is None
    stream.cancel()
    assert await stream.receive() is None
    with pytest.raises(Cancelled, match="has ended"):
        await stream.send(b"more")
    await stream.end()
    assert await peer.call(call(endpoint="Echo.Quick"), b"") == b"quick"
    assert server.in_flight == 0


async def test_an_early_answer_ends_a_caller_that_still_sends(line: Line) -> None:
    """Its sender waits for credit that will never come."""

    async def hasty(incoming: Incoming) -> None:
        await incoming.reply(b"enough")

    _, peer = await line.pair(hasty, limits=SMALL)
    async with await peer.open(call()) as stream:
        with pytest.raises(Cancelled, match="has ended"):
            await stream.send(bytes(100_000))
        assert await stream.receive() == b"enough"
    assert await peer.call(call(), bytes(100_000)) == b"enough"


async def test_half_a_message_cannot_be_followed_by_another(line: Line) -> None:
    """A send that is cancelled in the middle would glue the next message to its first half."""
    received: list[int] = []

    async def keep(incoming: Incoming) -> None:
        while (message := await incoming.receive()) is not None:
            received.append(len(message))
            await asyncio.Event().wait()  # the next one waits, and what comes after it too

    server, peer = await line.pair(keep, limits=SMALL)
    async with await peer.open(call()) as stream:
        await stream.send(b"one")
        await stream.send(b"two")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stream.send(bytes(10_000))
        with pytest.raises(Cancelled, match="cut off"):
            await stream.send(b"three")
        with pytest.raises(Cancelled, match="cut off"):
            await stream.receive()
    await eventually(lambda: server.in_flight == 0)
    assert received == [3]


async def test_a_send_that_is_cancelled_before_it_begins_does_no_harm(line: Line) -> None:
    async def keep(incoming: Incoming) -> None:
        await asyncio.Event().wait()

    _, peer = await line.pair(keep, limits=SMALL)
    async with await peer.open(call()) as stream:
        await stream.send(bytes(1024 - 64))  # all the credit there is
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stream.send(b"x")
        second = asyncio.ensure_future(stream.send(b"y"))
        await asyncio.sleep(0.01)
        assert not second.done()
        stream.cancel()
        with pytest.raises(Cancelled, match="given up"):
            await second


async def test_a_handler_that_cuts_a_message_off_ends_the_call(line: Line) -> None:
    errors: list[str] = []

    async def impatient(incoming: Incoming) -> None:
        try:
            async with asyncio.timeout(0.05):
                await incoming.send(bytes(10_000))
        except TimeoutError:
            try:
                await incoming.send(b"instead")
            except Cancelled as error:
                errors.append(error.detail)

    server, address = await line.server(impatient)
    async with raw.caller(address, window=1024, max_frame=1024) as caller:
        caller.send(raw.request(1))
        part = await caller.get(raw.DATA)
        assert (part.flags, len(part.payload)) == (raw.MORE, 960)
        error = await caller.get(raw.ERROR)
        assert (error.stream, error.json["code"]) == (1, 499)
        await eventually(lambda: errors == ["a message was cut off in the middle"])
        await eventually(lambda: server.in_flight == 0)
        caller.send(raw.frame(raw.PING))
        await caller.get(raw.PING)  # and nothing else has come


@pytest.mark.parametrize("endpoint", KINDS)
async def test_the_end_of_the_line_cancels_handlers(any_line: Line, endpoint: str) -> None:
    handler = Watched()
    server, address = await any_line.server(handler)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1, b"x", 0, endpoint=endpoint), raw.request(3, endpoint=endpoint))
        await eventually(lambda: handler.started == 2)
    await eventually(lambda: server.in_flight == 0 and not server.connections)
    ends = {"CancelledError"} if endpoint != "Echo.Listen" else {"CancelledError", "by itself"}
    assert set(handler.ended) == ends


async def test_a_half_closed_line_is_a_closed_one(any_line: Line) -> None:
    """Who sends no more cannot give credit, nor cancel."""
    handler = Watched()
    server, address = await any_line.server(handler)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1))
        await eventually(lambda: handler.started == 1)
        caller.half_close()
        assert await caller.rest() == []
        await eventually(lambda: handler.ended == ["CancelledError"])
        assert not server.connections


async def test_a_cancel_frame_cancels_once_and_answers_nothing(line: Line) -> None:
    handler = Watched()
    server, address = await line.server(handler)
    async with raw.caller(address) as caller:
        cancel = raw.frame(raw.CANCEL, 0, 1)
        caller.send(raw.request(1), cancel, cancel)
        caller.send(raw.request(3, endpoint="Echo.Quick"))
        answer = await caller.get(raw.DATA)
        assert (answer.stream, answer.flags, answer.payload) == (3, raw.END, b"quick")
        # The handler of a call that was cancelled before it began does not begin, and the call
        # does not count as one that is served.
        assert handler.started == 1
        assert server.in_flight == 0


async def test_a_thousand_calls_given_up_at_once(line: Line) -> None:
    handler = Watched()
    server, peer = await line.pair(handler)
    calls = [asyncio.ensure_future(peer.call(call(), b"")) for _ in range(1000)]
    await eventually(lambda: handler.started == 1000)
    for one in calls:
        one.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await eventually(lambda: server.in_flight == 0)
    assert handler.ended == ["CancelledError"] * 1000
    assert await peer.call(call(endpoint="Echo.Quick"), b"") == b"quick"


async def test_a_handler_that_gives_itself_up(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    async def gives_up(incoming: Incoming) -> None:
        raise asyncio.CancelledError

    _, peer = await line.pair(gives_up)
    with caplog.at_level(logging.INFO), pytest.raises(Cancelled, match="gave the call up"):
        await peer.call(call(), b"")


async def test_one_cancelled_sender_does_not_cancel_the_others(line: Line) -> None:
    """All wait for the same transport: each must be woken by itself."""

    async def asleep(reading: raw.Raw) -> None:
        await reading.get(raw.HELLO)
        reading.send(raw.hello(window=64 << 20, max_message=64 << 20))
        await asyncio.Event().wait()

    async with raw.listening(f"{line.folder}/s", asleep) as address:
        peer = await line.peer(address)
        streams = [await peer.open(call()) for _ in range(3)]
        sending = [asyncio.ensure_future(s.send(bytes(16 << 20))) for s in streams]
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in sending)
        calling = [asyncio.ensure_future(peer.call(call(), b"x")) for _ in range(3)]
        await asyncio.sleep(0.05)
        sending[0].cancel()
        calling[0].cancel()
        await asyncio.sleep(0.05)
        assert [one.done() for one in sending] == [True, False, False]
        assert [one.done() for one in calling] == [True, False, False]
        await peer.close()
        for one in sending[1:]:
            with pytest.raises(Cancelled, match="closed here"):
                await one
        for one in calling[1:]:
            with pytest.raises(Refused, match="is closing"):
                await one
        await asyncio.gather(*sending, *calling, return_exceptions=True)
