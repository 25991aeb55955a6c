"""Bytes that were requests once: changed, cut, repeated and sent in odd pieces. The door answers or
closes, raises nothing, and keeps nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from micro_ray.network.network import Network
from tests.fixtures.wait import eventually
from tests.unit.api.door import Door, open_door

pytestmark = pytest.mark.asyncio(loop_scope="package")

SEEDS = [
    b"GET /echo?name=x HTTP/1.1\r\nHost: x\r\n\r\n",
    b'POST /echo/call HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"name":"y"}',
    b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n",
    b"POST /streams/sum HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'c\r\n{"value":1}\n\r\n0\r\nX: y\r\n\r\n',
    b"GET /streams/count?to=3 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 3\r\n\r\nabc",
    b"GET /streams/double HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    b"\x81\x8b\0\0\0\0" + b'{"value":1}' + b"\x88\x80\0\0\0\0",
    b"HEAD /health HTTP/1.0\r\nExpect: 100-continue\r\n\r\n",
]
ODD = [b"\r\n", b"\0", b"\xff", b" ", b":", b"%", b"\r\n\r\n", b"0\r\n\r\n", b"-1", b"9" * 30]


@pytest_asyncio.fixture(loop_scope="package")
async def fuzzed(network: Network) -> AsyncIterator[Door]:
    async with open_door(network, header_timeout=0.3, timeout=0.3, max_headers=2000) as up:
        yield up


@pytest.fixture
def faults() -> list[Any]:
    return []


def changed(rand: random.Random) -> bytes:
    data = b"".join(rand.choices(SEEDS, k=rand.randint(1, 3)))
    for _ in range(rand.randint(0, 4)):
        at, width = rand.randrange(len(data) + 1), rand.randint(0, 6)
        kind = rand.randrange(4)
        if kind == 0:
            data = data[:at] + data[at + width :]
        elif kind == 1:
            data = data[:at] + rand.choice(ODD) + data[at:]
        elif kind == 2:
            data = data[:at] + bytes(rand.choices(range(256), k=width)) + data[at + width :]
        else:
            data += data[at : at + width * 20]
    return data


async def one(door: Door, rand: random.Random) -> None:
    data = changed(rand)
    async with door.line() as line:
        with contextlib.suppress(ConnectionError, TimeoutError):
            while data:
                size = rand.choice((1, 7, 50, 10_000))
                await line.send(data[:size])
                data = data[size:]
                if rand.random() < 0.2:
                    await asyncio.sleep(0)
            if rand.random() < 0.3:
                line.writer.write_eof()
            async with asyncio.timeout(rand.choice((0.0, 0.01, 0.1))):
                await line.reader.read()


@pytest.mark.parametrize("seed", range(8))
async def test_changed_requests(
    fuzzed: Door, faults: list[Any], seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: faults.append(context))
    try:
        rand = random.Random(seed)
        for _ in range(10):
            await asyncio.gather(*(one(fuzzed, rand) for _ in range(10)))
        await eventually(lambda: fuzzed.api.metrics.in_flight == 0)
        await eventually(lambda: not fuzzed.listener._server.server_state.connections)
    finally:
        loop.set_exception_handler(None)
    assert not faults
    assert "Traceback" not in caplog.text
    text = (await fuzzed.http.get("/metrics")).text
    assert 'service="api",code="500"' not in text
    assert await fuzzed.alive()
