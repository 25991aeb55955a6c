"""How a connection begins, and peers that do not know how."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from pathlib import Path

import pytest

from micro_ray.errors import BadRequest
from micro_ray.network import Refused
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call

QUICK = Limits(handshake=0.1)


async def echo(incoming: Incoming) -> None:
    await incoming.reply(await incoming.receive() or b"")


async def test_the_caller_speaks_first(any_line: Line) -> None:
    _, address = await any_line.server(echo, Limits(max_streams=7))
    async with raw.connected(address) as peer:
        with pytest.raises(TimeoutError):
            await peer.next(within=0.05)
        answer = await peer.greet()
        assert (answer.flags, answer.stream) == (0, 0)
        assert answer.json["magic"] == "micro"
        assert answer.json["max_streams"] == 7


async def test_a_hello_in_pieces(line: Line) -> None:
    _, address = await line.server(echo)
    async with raw.connected(address) as peer:
        for byte in raw.hello():
            peer.send(bytes([byte]))
            await peer.flushed()
        await peer.get(raw.HELLO)
        peer.send(raw.request(1, b"x"))
        assert (await peer.get(raw.DATA)).payload == b"x"


async def test_who_says_nothing_is_told_and_left(any_line: Line) -> None:
    server, address = await any_line.server(echo, QUICK)
    begun = time.monotonic()
    async with raw.connected(address) as peer:
        (error,) = await peer.rest()
        assert (error.kind, error.stream) == (raw.ERROR, 0)
        assert "no HELLO within 0.1 s" in error.json["detail"]
    assert time.monotonic() - begun > 0.09
    await eventually(lambda: not server.connections)


async def test_a_dial_that_was_refused_waits_for_no_hello(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(Refused):
        await WireDialer(limits=QUICK).dial(f"unix:{tmp_path}/nobody.sock")
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(QUICK.handshake + 0.05, later.set)
    await later.wait()
    assert "HELLO" not in caplog.text


async def test_who_dribbles_is_left_too(line: Line) -> None:
    """Its bytes keep coming, its HELLO is not whole in time. A bare socket, since a stream that
    fails to write forgets what it has not read yet."""
    server, address = await line.server(echo, QUICK)
    loop = asyncio.get_running_loop()
    greeting, sent, said = raw.hello(), 0, b""

    async def dribble(peer: socket.socket) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):  # it has been left
            for byte in greeting:
                await loop.sock_sendall(peer, bytes([byte]))
                sent += 1
                await asyncio.sleep(0.02)

    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        await loop.sock_connect(peer, address.removeprefix("unix:"))
        dribbling = asyncio.ensure_future(dribble(peer))
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(raw.PATIENCE):
                while piece := await loop.sock_recv(peer, 2**16):
                    said += piece
        await dribbling
    assert b"no HELLO within 0.1 s" in said
    assert said[4] == raw.ERROR
    assert sent < len(greeting)
    await eventually(lambda: not server.connections)


FIRST_WORDS = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "zeros": bytes(100),
    "ones": b"\xff" * 100,
    "text": b"hello\n" * 50,
    "no HELLO": raw.request(1, b"x"),
    "a PING": raw.frame(raw.PING),
    "an ERROR on a stream": raw.frame(raw.ERROR, raw.END, 1, b"{}"),
    "a HELLO of no JSON": raw.frame(raw.HELLO, 0, 0, b"hello"),
    "a large HELLO": raw.hello(x="y" * 5000),
    "an unknown kind": raw.frame(8),
    "the wrong magic": raw.hello(magic="macro"),
    "a version to come": raw.hello(versions=[2, 3]),
    "small limits": raw.hello(max_frame=10),
}


@pytest.mark.parametrize("words", FIRST_WORDS.values(), ids=FIRST_WORDS.keys())
async def test_who_speaks_something_else_is_told_and_left(line: Line, words: bytes) -> None:
    server, address = await line.server(echo)
    async with raw.connected(address) as peer:
        peer.send(words)
        frames = await peer.rest()
        assert [(f.kind, f.flags, f.stream) for f in frames] == [(raw.ERROR, raw.END, 0)]
        assert frames[0].json["code"] == 500
        assert len(frames[0].json["detail"]) > 10
    await eventually(lambda: not server.connections)
    peer2 = await line.peer(address)
    assert await peer2.call(call(), b"still here") == b"still here"


async def test_who_says_why_it_goes_is_not_answered(line: Line) -> None:
    server, address = await line.server(echo)
    async with raw.connected(address) as peer:
        peer.send(raw.frame(raw.ERROR, raw.END, 0, b'{"detail":"I speak version 2 only"}'))
        assert await peer.rest() == []
    await eventually(lambda: not server.connections)


async def test_a_version_to_come_is_told_which_there_is(line: Line) -> None:
    _, address = await line.server(echo)
    async with raw.connected(address) as peer:
        peer.send(raw.hello(versions=[2, 3]))
        (error,) = await peer.rest()
        assert error.json["detail"] == "no common version: here 1, there 2 to 3"


async def test_a_second_hello(line: Line) -> None:
    _, address = await line.server(echo)
    async with raw.caller(address) as peer:
        peer.send(raw.hello())
        (error,) = await peer.rest()
        assert "a second HELLO" in error.json["detail"]


# -- the dialing side ----------------------------------------------------------------------------


@pytest.mark.parametrize("words", FIRST_WORDS.values(), ids=FIRST_WORDS.keys())
async def test_a_server_that_speaks_something_else(line: Line, words: bytes) -> None:
    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(words)
        await peer.rest()

    async with raw.listening(f"{line.folder}/s", serve) as address:
        with pytest.raises(Refused) as caught:
            await WireDialer().dial(address, timeout=5)
        assert "s" in caught.value.detail


async def test_a_server_says_why_it_does_not_want(line: Line) -> None:
    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.frame(raw.ERROR, raw.END, 0, b'{"code":500,"detail":"go away"}'))
        await peer.rest()

    async with raw.listening(f"{line.folder}/s", serve) as address:
        with pytest.raises(Refused, match=r"s closed the connection: go away"):
            await WireDialer().dial(address, timeout=5)


async def test_a_server_that_says_nothing(line: Line) -> None:
    async def serve(peer: raw.Raw) -> None:
        await peer.rest()

    async with raw.listening(f"{line.folder}/s", serve) as address:
        begun = time.monotonic()
        with pytest.raises(Refused, match=r"cannot reach .*s: no answer within 0\.1 s"):
            await WireDialer().dial(address, timeout=0.1)
        assert time.monotonic() - begun > 0.09
        with pytest.raises(Refused, match=r"given up \(no HELLO within 0\.1 s\)"):
            await WireDialer(limits=QUICK).dial(address, timeout=5)


async def test_a_server_that_closes_at_once(line: Line) -> None:
    async def serve(peer: raw.Raw) -> None:
        await peer.close()

    async with raw.listening(f"{line.folder}/s", serve) as address:
        with pytest.raises(Refused, match=r"s broke"):
            await WireDialer().dial(address, timeout=5)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("unix:/nowhere/at/all.sock", "No such file"),
        ("unix:/etc", "Connection refused"),
        ("tcp:127.0.0.1:1", "onnect"),
        ("tcp:nobody.invalid:80", "cannot reach tcp:nobody.invalid:80"),
    ],
)
async def test_nobody_is_there(line: Line, address: str, why: str) -> None:
    with pytest.raises(Refused, match=why) as caught:
        await WireDialer().dial(address, timeout=5)
    assert address in caught.value.detail


async def test_an_address_that_is_none(line: Line) -> None:
    with pytest.raises(BadRequest, match="not an address"):
        await WireDialer().dial("http://localhost:80", timeout=5)


async def test_a_dial_that_is_given_up(line: Line) -> None:
    connections: list[raw.Raw] = []

    async def serve(peer: raw.Raw) -> None:
        connections.append(peer)
        await peer.rest()

    async with raw.listening(f"{line.folder}/s", serve) as address:
        dialing = asyncio.ensure_future(WireDialer().dial(address, timeout=5))
        await eventually(lambda: connections)
        dialing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialing
