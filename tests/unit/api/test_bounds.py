"""Bounds of size and number: kept exactly, and answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from micro_ray.api.app import MAX_HEADERS
from micro_ray.network.network import Network
from tests.fixtures.wait import eventually
from tests.unit.api.door import Door, open_door
from tests.unit.api.services import Probe

pytestmark = pytest.mark.asyncio(loop_scope="package")

LIMIT = 1000


@pytest_asyncio.fixture(loop_scope="package")
async def small(network: Network) -> AsyncIterator[Door]:
    async with open_door(network, max_body=LIMIT, max_headers=4000) as up:
        yield up


async def chunked(size: int, by: int = 100) -> AsyncIterator[bytes]:
    for start in range(0, size, by):
        yield b"x" * min(by, size - start)


async def test_bodies(small: Door) -> None:
    for path in ("/echo/raw", "/echo/measure"):
        for size, code in ((LIMIT, 200), (LIMIT + 1, 413), (LIMIT * 100, 413)):
            answer = await small.http.post(path, content=b"x" * size)
            assert answer.status_code == code
            answer = await small.http.post(path, content=chunked(size))
            assert answer.status_code == code
            if code == 413:
                assert str(LIMIT) in answer.json()["detail"]
    assert await small.alive()


async def test_a_length_over_the_limit_is_refused_before_the_body(small: Door) -> None:
    async with small.line() as line:
        await line.send(b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
        answer = await line.answer()
        assert (answer.code, "1001 bytes" in answer.json()["detail"]) == (413, True)


async def test_the_connection_goes_on_after_a_refused_body(small: Door) -> None:
    """What is left of it is taken, so that the client sees the answer and not a reset."""
    async with small.line() as line:
        await line.send(b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
        await line.send(b"x" * 3_000_000)
        assert (await line.answer()).code == 413
        await line.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await line.answer()).code == 200


async def test_bodies_of_get_and_delete(small: Door) -> None:
    for method in ("GET", "DELETE"):
        answer = await small.http.request(method, "/echo/raw", content=b"x" * (LIMIT + 1))
        assert answer.status_code == 413


async def test_headers_are_counted(door: Door) -> None:
    own = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    call = b"GET /echo HTTP/1.1\r\nHost: x\r\n"
    more = b"".join(b"x-%d: y\r\n" % number for number in range(MAX_HEADERS - 1))
    assert (await door.exchange(call + more + b"\r\n")).code == 200
    answer = await door.exchange(call + more + b"x-one-more: y\r\n\r\n")
    assert (answer.code, answer.json()["detail"]) == (431, "over 100 headers")
    assert (await door.exchange(own + more + b"\r\n")).code == 200
    assert await door.alive()


def head_of(size: int, prefix: bytes = b"GET /health HTTP/1.1\r\nHost: x\r\n") -> bytes:
    """A head of about ``size`` bytes, most of it in one header."""
    return prefix + b"x-large: " + b"y" * (size - len(prefix) - 11) + b"\r\n\r\n"


@pytest.mark.parametrize("size", [4100, 100_000, 5_000_000])
@pytest.mark.parametrize("piece", [500, 70_000, 2**30])
async def test_one_huge_header(small: Door, size: int, piece: int) -> None:
    """In one piece or many, it costs the connection; its client gets to know why."""
    head = head_of(size)
    async with small.line() as line:
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(head), piece):
                await line.send(head[start : start + piece])
        answer = await line.answer()
        assert (answer.code, "4000" in answer.json()["detail"]) == (431, True)
        assert await line.ended()
    assert await small.alive()


async def test_a_head_within_the_limit(small: Door) -> None:
    assert (await small.exchange(head_of(3900))).code == 200
    async with small.line() as line:
        for byte in head_of(3900):
            line.writer.write(bytes([byte]))
        assert (await line.answer()).code == 200


@pytest.mark.parametrize("piece", [500, 2**30])
async def test_a_huge_request_line(small: Door, piece: int) -> None:
    query = b"/echo?name="
    for part, code in (
        (b"/" + b"a" * 5000, 431),
        (query + b"a" * 100_000, 431),
        (query + b"a" * 3000, 200),
        (b"/no/" + b"a" * 3900, 404),
    ):
        head = b"GET " + part + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        async with small.line() as line:
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(head), piece):
                    await line.send(head[start : start + piece])
            assert (await line.answer()).code == code


async def test_a_small_head_behind_a_large_body(network: Network) -> None:
    """Pieces that hold a body and the next head count as body."""
    async with open_door(network, max_headers=4000) as door, door.line() as line:
        post = b"POST /echo/measure HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
        request = post + b"x" * 60_000
        for _ in range(3):
            await line.send(request + request[:40])
            assert (await line.answer()).json()["size"] == 60_000
            await line.send(request[40:])
            assert (await line.answer()).json()["size"] == 60_000


async def test_endless_headers(small: Door) -> None:
    async with small.line() as line:
        await line.send(b"GET /health HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(100_000):
                await line.send(b"x-%d: y\r\n" % number)
        assert (await line.answer()).code == 431
    assert await small.alive()


async def test_endless_blank_lines(small: Door) -> None:
    async with small.line() as line:
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                await line.send(b"\r\n" * 1000)
        assert (await line.answer()).code == 431


@pytest.mark.parametrize("beside", [b"x-%d: y\r\n", b"x-%d: " + b"y" * 3000 + b"\r\n"])
async def test_endless_trailers(small: Door, beside: bytes) -> None:
    async with small.line() as line:
        head = b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await line.send(head + b"3\r\nabc\r\n0\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(10_000):
                await line.send(beside % number)
        answer = await line.answer()
        assert (answer.code, "beside the body" in answer.json()["detail"]) == (431, True)
    await eventually(lambda: small.api.metrics.in_flight == 0)
    assert await small.alive()


async def test_an_endless_chunk_extension(small: Door) -> None:
    async with small.line() as line:
        head = b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await line.send(head + b"3;x=")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                await line.send(b"y" * 1000)
        assert (await line.answer()).code == 431
    await eventually(lambda: small.api.metrics.in_flight == 0)


async def test_requests_under_way_are_bounded(network: Network, probe: Probe) -> None:
    async with open_door(network, max_in_flight=3) as door:
        calls = [asyncio.create_task(door.http.get("/echo/hang?name=full")) for _ in range(3)]
        await eventually(lambda: probe.begun["full"] == 3)
        for path in ("/echo", "/streams/count"):
            answer = await door.http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, 503)
            assert answer.headers["retry-after"] == "1"
        assert (await door.http.get("/health")).status_code == 200
        assert (await door.http.get("/metrics")).status_code == 200
        probe.release.set()
        try:
            for call in calls:
                assert (await call).json() == {"name": "full"}
        finally:
            probe.release.clear()
        assert await door.alive()


async def test_connections_are_bounded(network: Network) -> None:
    async with open_door(network, max_connections=3) as door:
        async with door.line(), door.line(), door.line(), door.line() as fourth:
            answer = await fourth.answer()
            assert (answer.code, "3 connections" in answer.json()["detail"]) == (503, True)
            assert await fourth.ended()
        await eventually(door.alive)


async def test_large_answers(door: Door) -> None:
    """Up to what a message may have, and an error beyond; the door goes on."""
    answer = await door.http.post("/echo/bytes-of", json={"size": 16 * 2**20})
    assert len(answer.content) == 16 * 2**20
    answer = await door.http.post("/echo/bytes-of", json={"size": 17 * 2**20})
    assert answer.status_code in (413, 500, 502)
    assert str(16 * 2**20) in answer.json()["detail"]
    assert await door.alive()
