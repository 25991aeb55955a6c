"""Peers that know the protocol and break it: what ends the connection, what is passed over."""

from __future__ import annotations

import asyncio
import struct

import pytest

from micro_ray.errors import BadGateway, InternalError, MicroError, TooLarge
from micro_ray.network import Broken
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call

SMALL = Limits(max_frame=2048, max_message=4096, window=8192, max_header=1024)


async def collect(incoming: Incoming) -> None:
    while await incoming.receive() is not None:
        pass
    await incoming.reply(b"answer")


OPEN = raw.request(1, b"", raw.BARE)
CALLER_BREAKS = {
    "an unknown kind": (raw.frame(8), "unknown frame kind 8"),
    "a frame too large": (raw.frame(raw.DATA, 0, 1, bytes(2048 + 1024 + 3)), "frame of 3081 bytes"),
    "a length too small": (b"\0\0\0\5\2\0\0\0\0\1", "frame of 5 bytes"),
    "an even stream": (raw.request(2), "REQUEST on stream 2; odd and growing ids only"),
    "stream zero": (raw.request(0), "REQUEST on stream 0"),
    "a stream used twice": (OPEN + raw.request(1), "REQUEST on stream 1"),
    "ids that go back": (raw.request(5) + raw.request(3), "REQUEST on stream 3"),
    "a REQUEST without its header": (raw.frame(raw.REQUEST, 0, 1, b"\0"), "shorter than its"),
    "a header cut off": (raw.frame(raw.REQUEST, 0, 1, b"\1\0{}"), "shorter than its header"),
    "DATA before a REQUEST": (raw.data(1, b"x"), "DATA on stream 1, which was never opened"),
    "DATA on an even stream": (OPEN + raw.data(2), "DATA on stream 2, which was never opened"),
    "DATA after the end": (raw.request(1) + raw.data(1, b"x"), "DATA after END on stream 1"),
    "END twice": (OPEN + raw.data(1, b"", raw.END | raw.BARE) * 2, "DATA after END on stream 1"),
    "BARE with bytes": (OPEN + raw.data(1, b"x", raw.BARE), "BARE frame with or within"),
    "BARE and MORE": (OPEN + raw.data(1, b"", raw.BARE | raw.MORE), "BARE frame with or within"),
    "BARE in a message": (
        OPEN + raw.data(1, b"x", raw.MORE) + raw.data(1, b"", raw.END | raw.BARE),
        "BARE frame with or within",
    ),
    "BARE with a body": (raw.request(1, b"x", raw.BARE), "BARE frame with or within"),
    "MORE at the end": (OPEN + raw.data(1, b"x", raw.MORE | raw.END), "MORE on the last frame"),
    "MORE of nothing": (OPEN + raw.data(1, b"", raw.MORE), "MORE on the last frame or an empty"),
    "WINDOW of three bytes": (raw.frame(raw.WINDOW, 0, 1, b"123"), "WINDOW takes four bytes"),
    "WINDOW of five bytes": (raw.frame(raw.WINDOW, 0, 1, b"12345"), "WINDOW takes four bytes"),
    "CANCEL of a stream to come": (
        OPEN + raw.frame(raw.CANCEL, 0, 3),
        "CANCEL on stream 3, which was never opened",
    ),
    "CANCEL of stream zero": (raw.frame(raw.CANCEL), "CANCEL on stream 0, which was never opened"),
    "WINDOW for a stream to come": (
        OPEN + raw.window(3, 1),
        "WINDOW on stream 3, which was never opened",
    ),
    "WINDOW for an even stream": (
        raw.request(3) + raw.window(2, 1),
        "WINDOW on stream 2, which was never opened",
    ),
    "an ERROR": (OPEN + raw.frame(raw.ERROR, raw.END, 1, b"{}"), "a client ends a call by CANCEL"),
    "a GOAWAY": (raw.frame(raw.GOAWAY, 0, 1), "GOAWAY is for the client"),
}


@pytest.mark.parametrize(("frames", "why"), CALLER_BREAKS.values(), ids=CALLER_BREAKS.keys())
async def test_a_caller_that_breaks_the_protocol(line: Line, frames: bytes, why: str) -> None:
    server, address = await line.server(collect, SMALL)
    bystander = await line.peer(address)
    async with raw.caller(address) as caller:
        caller.send(frames)
        *before, error = await caller.rest()
        assert (error.kind, error.flags, error.stream) == (raw.ERROR, raw.END, 0)
        assert why in error.json["detail"]
        assert error.json["code"] == 500
        assert all(frame.stream for frame in before)
    await eventually(lambda: len(server.connections) == 1 and server.in_flight == 0)
    assert await bystander.call(call(), b"x") == b"answer"


PASSED_OVER = {
    "an answer to no PING": raw.frame(raw.PING, raw.ACK, 0, b"?"),
    "a PING on a stream": raw.frame(raw.PING, raw.ACK, 7),
    "flags of a later day": OPEN + raw.frame(raw.WINDOW, 0xF0, 1, bytes(4)),
    "DATA, CANCEL and WINDOW of a call that has ended": OPEN
    + raw.frame(raw.CANCEL, 0, 1) * 2
    + raw.window(1, 9)
    + raw.data(1, b"x"),
}


@pytest.mark.parametrize("frames", PASSED_OVER.values(), ids=PASSED_OVER.keys())
async def test_what_is_passed_over(line: Line, frames: bytes) -> None:
    _, address = await line.server(collect)
    async with raw.caller(address) as caller:
        caller.send(frames, raw.request(3, b"x"))
        answer = await caller.get(raw.DATA)
        assert (answer.stream, answer.payload) == (3, b"answer")


async def test_a_caller_that_says_why_it_closes(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """Its ERROR on stream 0 is logged and not answered; its calls are cancelled."""
    caplog.set_level("INFO", "micro_ray.wire")
    cancelled = asyncio.Event()

    async def hang(incoming: Incoming) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    server, address = await line.server(hang)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1))
        await eventually(lambda: server.in_flight == 1)
        caller.send(raw.frame(raw.ERROR, raw.END, 0, b'{"code":500,"detail":"you broke it"}'))
        assert await caller.rest() == []
        await asyncio.wait_for(cancelled.wait(), 5)
    await eventually(lambda: not server.connections and server.in_flight == 0)
    assert "closed by the caller: you broke it" in caplog.text


async def test_a_message_over_the_limit_ends_its_call_only(line: Line) -> None:
    server, address = await line.server(collect, SMALL)
    async with raw.caller(address) as caller:
        caller.send(OPEN, *[raw.data(1, bytes(2000), raw.MORE)] * 3, raw.data(1, bytes(100)))
        assert (await caller.get(raw.WINDOW)).number == 2 * (2000 + 64)
        error = await caller.get(raw.ERROR)
        assert (error.stream, error.json["code"]) == (1, 413)
        assert error.json["detail"] == "message over 4096 bytes"
        await eventually(lambda: server.in_flight == 0)
        (connection,) = server.connections
        assert connection.buffered == 0
        caller.send(raw.data(1, b"", raw.END | raw.BARE), raw.request(3))
        answer = await caller.get(raw.DATA)
        assert (answer.stream, answer.payload) == (3, b"answer")


# -- servers ---------------------------------------------------------------------------------------

SERVER_BREAKS = {
    "an unknown kind": raw.frame(99),
    "a REQUEST": raw.request(2),
    "a CANCEL": raw.frame(raw.CANCEL, 0, 1),
    "a HELLO": raw.hello(),
    "DATA on a stream to come": raw.data(5, b"x"),
    "DATA on an even stream": raw.data(2, b"x"),
    "WINDOW for a stream to come": raw.window(5, 1),
    "WINDOW for stream zero": raw.window(0, 1),
    "an ERROR on a stream to come": raw.frame(raw.ERROR, raw.END, 5, b"{}"),
    "an ERROR on an even stream": raw.frame(raw.ERROR, raw.END, 2, b"{}"),
    "BARE with bytes": raw.data(1, b"x", raw.BARE),
    "BARE and MORE": raw.data(1, b"", raw.BARE | raw.MORE),
    "BARE in a message": raw.data(1, b"x", raw.MORE) + raw.data(1, b"", raw.END | raw.BARE),
    "MORE at the end": raw.data(1, b"x", raw.MORE | raw.END),
    "MORE of nothing": raw.data(1, b"", raw.MORE),
    "WINDOW of no bytes": raw.frame(raw.WINDOW, 0, 1),
    "endless credit": raw.window(3, 2**32 - 1),
    "more than the credit": raw.data(3, bytes(2**20)) * 2,
    "a frame too large": struct.pack(">IBBI", 2**24, raw.DATA, 0, 1),
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("frames", SERVER_BREAKS.values(), ids=SERVER_BREAKS.keys())
async def test_a_server_that_breaks_the_protocol(line: Line, frames: bytes) -> None:
    """All calls of the connection fail as broken, and the server is told why."""
    told: list[raw.Frame] = []

    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello())
        await peer.get(raw.REQUEST)
        await peer.get(raw.REQUEST)
        peer.send(frames)
        told.extend(await peer.rest())

    async with raw.listening(f"{line.folder}/s", serve) as address:
        peer = await line.peer(address)
        calling = asyncio.ensure_future(peer.call(call(), b""))
        await asyncio.sleep(0)
        stream = await peer.open(call())
        with pytest.raises(Broken, match=r"given up \(.+\) while the call was under way"):
            await calling
        with pytest.raises(Broken):
            [_ async for _ in stream]
        assert peer.closed
        await eventually(lambda: told and told[-1].kind == raw.ERROR)
        assert told[-1].stream == 0


ANSWERS: dict[str, tuple[bytes, type[MicroError], str]] = {
    "nothing": (raw.data(1, b"", raw.END | raw.BARE), BadGateway, "without an answer"),
    "an error of garbage": (raw.frame(raw.ERROR, raw.END, 1, b"\xff"), InternalError, "unreadable"),
    "an empty error": (raw.frame(raw.ERROR, raw.END, 1, b""), InternalError, "unreadable"),
    "an error of numbers": (raw.frame(raw.ERROR, 0, 1, b'{"code":[1],"id":2}'), InternalError, ""),
    "too much": (raw.data(1, bytes(1500), raw.MORE) * 3, TooLarge, "answer over 4096 bytes"),
    "too much at last": (
        raw.data(1, bytes(2000), raw.MORE) * 2 + raw.data(1, bytes(97), raw.END),
        TooLarge,
        "answer over 4096 bytes",
    ),
}


@pytest.mark.parametrize(("frames", "kind", "why"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_answers_that_are_none_fail_their_call_only(
    line: Line, frames: bytes, kind: type[MicroError], why: str
) -> None:
    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello())
        await peer.get(raw.REQUEST)
        peer.send(frames)
        while (frame := await peer.next()).kind != raw.REQUEST:
            pass
        peer.send(raw.data(frame.stream, b"fine", raw.END))
        await peer.rest()

    async with raw.listening(f"{line.folder}/s", serve) as address:
        peer = await line.peer(address, SMALL)
        with pytest.raises(kind) as caught:
            await peer.call(call(), b"")
        assert why in caught.value.detail
        assert await peer.call(call(), b"") == b"fine"
        assert peer.in_flight == 0


async def test_frames_for_calls_that_have_ended_are_passed_over(line: Line) -> None:
    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello())
        await peer.get(raw.REQUEST)
        late = raw.data(1, b"late", raw.END)
        peer.send(raw.data(1, b"one", raw.END), late, late, raw.window(1, 2**31))
        peer.send(raw.frame(raw.ERROR, raw.END, 1, b"{}"), raw.window(1, 9))
        await peer.get(raw.REQUEST)
        peer.send(raw.data(3, b"two", raw.END))
        await peer.rest()

    async with raw.listening(f"{line.folder}/s", serve) as address:
        peer = await line.peer(address)
        assert await peer.call(call(), b"") == b"one"
        assert await peer.call(call(), b"") == b"two"
