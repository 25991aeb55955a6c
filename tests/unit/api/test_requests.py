"""Requests that break HTTP, or bend it: each gets its answer, and none is taken for another."""

from __future__ import annotations

import asyncio

import pytest

from tests.fixtures.wait import eventually
from tests.unit.api.door import Door
from tests.unit.api.services import Probe

pytestmark = pytest.mark.asyncio(loop_scope="package")

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"FOO / HTTP/1.1",
        b"GET / HTTP/1.2",
        b"GET / HTTP/1.1 x",
        b"GET /a b HTTP/1.1",
        b"GET /\xff HTTP/1.1",
        b"GET http://x HTTP/1.1",
        b"GET foo HTTP/1.1",
        b"get / HTTP/1.1",
        b"PRI * HTTP/2.0\r\n\r\nSM",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0",
        b"GET / HTTP/1.1\r\nX : y",
        b"GET / HTTP/1.1\r\nX: a\r\n b",
        b"GET / HTTP/1.1\r\nX: a\0b",
        b"GET / HTTP/1.1\r\nX: a\nY: b",
        b"GET / HTTP/1.1\r\nX: a\rY: b",
        b"GET / HTTP/1.1\r\n: empty",
        b"GET / HTTP/1.1\nHost: x",
        b"GET / HTTP/1.1\r\nX\xff: y",
    ],
)
async def test_what_is_no_request(door: Door, head: bytes) -> None:
    async with door.line() as line:
        await line.send(head + b"\r\n\r\n")
        answer = await line.answer()
        assert answer.code == 400
        assert answer.json()["id"] == "api"
        assert answer.json()["status"] == "Bad Request"
        assert answer.headers["connection"] == "close"
        assert len(answer.headers["x-request-id"]) == 32
        assert await line.ended()
    assert await door.alive()


SMUGGLED = b"GET /echo/hang?name=smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 3\r\nContent-Length: 3",
        b"Content-Length: 3\r\nContent-Length: 0",
        b"Content-Length: 3, 3",
        b"Content-Length: +3",
        b"Content-Length: -3",
        b"Content-Length: 0x3",
        b"Content-Length: 3 3",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: three",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: \x0bchunked",
    ],
)
async def test_bodies_that_two_readers_would_end_differently(
    door: Door, probe: Probe, framing: bytes
) -> None:
    """Each is refused, the connection closed, and what follows is no request."""
    async with door.line() as line:
        await line.send(b"POST /echo HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n" + SMUGGLED)
        answer = await line.answer()
        assert 400 <= answer.code < 500, answer
        assert await line.ended()
    assert probe.begun["smuggled"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\nabc\r\n",
        b"3\r\nabcd\r\n",
        b"-3\r\nabc\r\n",
        b"3\nabc\r\n",
        b"ffffffffffffffffff\r\nabc",
    ],
)
async def test_bad_chunks(door: Door, body: bytes) -> None:
    async with door.line() as line:
        head = b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await line.send(head + body + b"0\r\n\r\n")
        answer = await line.answer()
        assert (answer.code, answer.json()["id"]) == (400, "api")
        assert await line.ended()
    await eventually(lambda: door.api.metrics.in_flight == 0)
    assert await door.alive()


async def test_good_chunks(door: Door) -> None:
    head = b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
    body = b"3;name=value\r\nabc\r\n0002\r\nde\r\n0\r\nX-Trailer: y\r\n\r\n"
    assert (await door.exchange(head + body)).body == b"abcde"
    async with door.line() as line:  # a byte at a time
        for byte in head + body:
            await line.send(bytes([byte]))
        assert (await line.answer()).body == b"abcde"


async def test_trailers_are_no_headers(door: Door) -> None:
    head = b"POST /echo/context HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"X-Request-Id: trailed\r\nBaggage: x\r\nTimeout: x\r\nOrigin: http://evil\r\n"
    async with door.line() as line:
        for _ in range(2):
            await line.send(head + b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n")
            answer = await line.answer()
            assert answer.code == 200
            assert answer.headers["x-request-id"] != "trailed"
            assert "baggage" not in answer.json()["metadata"]


async def test_pipelined_requests_are_answered_in_order(door: Door) -> None:
    async with door.line() as line:
        await line.send(
            b"".join(
                b"GET /echo?name=%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(20)
            )
        )
        for number in range(20):
            assert (await line.answer()).json() == {"message": f"Hello {number}"}


async def test_a_request_behind_one_with_a_body(door: Door) -> None:
    post = b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    async with door.line() as line:
        await line.send(post + HEALTH + post)
        assert (await line.answer()).body == b"abc"
        assert (await line.answer()).json() == {"status": "ok"}
        assert (await line.answer()).body == b"abc"


async def test_too_many_pipelined_requests(door: Door, probe: Probe) -> None:
    """They are not gathered; those that were taken get their answers."""
    async with door.line() as line:
        await line.send(b"GET /echo/hang?name=piped HTTP/1.1\r\nHost: x\r\n\r\n" + HEALTH * 5000)
        await eventually(lambda: probe.begun["piped"] == 1)
        probe.release.set()
        try:
            assert (await line.answer()).json() == {"name": "piped"}
        finally:
            probe.release.clear()
        answers = [await line.answer() for _ in range(65)]
        assert [answer.code for answer in answers] == [200] * 64 + [429]
        assert await line.ended()


async def test_garbage_behind_a_request_does_not_spoil_its_answer(door: Door, probe: Probe) -> None:
    async with door.line() as line:
        await line.send(b"GET /echo/hang?name=spoil HTTP/1.1\r\nHost: x\r\n\r\n" + HEALTH)
        await eventually(lambda: probe.begun["spoil"] == 1)
        await line.send(b"garbage\r\n\r\n")
        probe.release.set()
        try:
            assert (await line.answer()).json() == {"name": "spoil"}
        finally:
            probe.release.clear()
        assert (await line.answer()).json() == {"status": "ok"}
        assert (await line.answer()).code == 400
        assert await line.ended()


async def test_a_broken_body_behind_a_request(door: Door, probe: Probe) -> None:
    """The request whose body it is, is not called; the one before is answered first."""
    bad = b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    async with door.line() as line:
        await line.send(b"GET /echo/hang?name=behind HTTP/1.1\r\nHost: x\r\n\r\n" + HEALTH + bad)
        await eventually(lambda: probe.begun["behind"] == 1)
        probe.release.set()
        try:
            assert (await line.answer()).json() == {"name": "behind"}
        finally:
            probe.release.clear()
        assert (await line.answer()).json() == {"status": "ok"}
        assert (await line.answer()).code == 400
        assert await line.ended()


async def test_garbage_in_the_body_of_a_stream_ends_the_response(door: Door) -> None:
    """It has begun: nothing else may stand in it."""
    async with door.line() as line:
        head = b"POST /streams/double HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await line.send(head + b'c\r\n{"value":1}\n\r\n')
        assert (await line.head())[0] == 200
        assert await line.chunk() == b'{"value":2}\n'
        await line.send(b"garbage\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await line.chunk()
    await eventually(lambda: door.api.metrics.in_flight == 0)


async def test_http_1_0_and_connection_close(door: Door) -> None:
    for head in (
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
    ):
        async with door.line() as line:
            await line.send(head)
            answer = await line.answer()
            assert (answer.json(), answer.headers["connection"]) == ({"status": "ok"}, "close")
            assert await line.ended()


async def test_expect_100_continue(door: Door) -> None:
    async with door.line() as line:
        head = (
            b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        await line.send(head % 3)
        assert await line.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await line.send(b"abc")
        assert (await line.answer()).body == b"abc"
    async with door.line() as line:  # what will not be taken is not asked for
        await line.send(head % 2**30)
        assert (await line.answer()).code == 413


@pytest.mark.parametrize("whole", [True, False])
async def test_an_offer_of_http_2_is_not_taken_and_the_body_not_lost(
    door: Door, probe: Probe, whole: bool
) -> None:
    """curl --http2 and Java's client offer it with every first request."""
    head = (
        b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: %d\r\n\r\n"
        % len(SMUGGLED)
    )
    async with door.line() as line:
        for _ in range(2):
            if whole:
                await line.send(head + SMUGGLED + HEALTH)
            else:
                await line.send(head)
                await asyncio.sleep(0)
                await line.send(SMUGGLED)
                await line.send(HEALTH)
            assert (await line.answer()).body == SMUGGLED
            assert (await line.answer()).json() == {"status": "ok"}
    assert probe.begun["smuggled"] == 0


async def test_offers_and_closing(door: Door) -> None:
    async with door.line() as line:
        await line.send(
            b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close, upgrade\r\nUpgrade: h2c\r\n\r\n"
        )
        answer = await line.answer()
        assert (answer.code, answer.headers["connection"]) == (200, "close")
        assert await line.ended()


async def test_connect_is_no_proxy(door: Door) -> None:
    async with door.line() as line:
        await line.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await line.answer()).code == 405
        assert await line.ended()


async def test_a_websocket_does_not_cut_in(door: Door, probe: Probe) -> None:
    upgrade = (
        b"GET /echo/call HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with door.line() as line:
        await line.send(b"GET /echo/hang?name=cut HTTP/1.1\r\nHost: x\r\n\r\n" + upgrade)
        await eventually(lambda: probe.begun["cut"] == 1)
        probe.release.set()
        try:
            assert (await line.answer()).json() == {"name": "cut"}
        finally:
            probe.release.clear()
        assert (await line.answer()).code == 400
    async with door.line() as line:
        await line.send(HEALTH)
        assert (await line.answer()).code == 200
        await line.send(upgrade)
        assert (await line.head())[0] == 101


async def test_absolute_urls(door: Door) -> None:
    answer = await door.exchange(
        b"GET http://door.localhost/echo?name=x HTTP/1.1\r\nHost: door.localhost\r\n\r\n"
    )
    assert answer.json() == {"message": "Hello x"}


async def test_blank_lines_before_a_request(door: Door) -> None:
    assert (await door.exchange(b"\r\n\r\n" + HEALTH)).code == 200


async def test_many_at_once_of_every_kind(door: Door) -> None:
    """Garbage on some connections does not reach the others."""

    async def bad() -> None:
        assert (await door.exchange(b"garbage\r\n\r\n")).code == 400

    async def good() -> None:
        assert await door.alive()

    await asyncio.gather(*(bad() if number % 2 else good() for number in range(100)))
