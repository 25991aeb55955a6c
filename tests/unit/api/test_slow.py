"""Clients that are slow, or do nothing: each costs a connection for a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from micro_ray.network.network import Network
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.api.door import Door, Line, open_door, reset
from tests.unit.api.services import Probe

pytestmark = pytest.mark.asyncio(loop_scope="package")

SHORT = 0.25


@pytest_asyncio.fixture(loop_scope="package")
async def hasty(network: Network) -> AsyncIterator[Door]:
    async with open_door(network, header_timeout=SHORT, timeout=SHORT, stall_timeout=SHORT) as up:
        yield up


@contextlib.asynccontextmanager
async def trickle(line: Line, data: bytes, every: float = SHORT / 10) -> AsyncIterator[None]:
    """Go on sending single bytes beside what the test does."""

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            for byte in data:
                await line.send(bytes([byte]))
                await asyncio.sleep(every)

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_client_that_says_nothing(hasty: Door) -> None:
    begun = time.monotonic()
    async with hasty.line() as line:
        answer = await line.answer()
        assert (answer.code, answer.json()["status"]) == (408, "Request Timeout")
        assert SHORT * 0.9 < time.monotonic() - begun < PROMPT
        assert await line.ended()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n" + b"X: yyyyyyyyyy\r\n" * 50,
        b"\r\n" * 500,
        b"GET /" + b"a" * 500,
    ],
)
async def test_a_slow_head(hasty: Door, head: bytes) -> None:
    async with hasty.line() as line, trickle(line, head):
        assert (await line.answer()).code == 408
    assert await hasty.alive()


async def test_a_slow_head_on_a_used_connection(hasty: Door) -> None:
    """The bound is each head's, not the connection's; an idle connection is left alone."""
    async with hasty.line() as line:
        for _ in range(3):
            await line.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await line.answer()).code == 200
            await asyncio.sleep(SHORT / 2)
        await asyncio.sleep(SHORT)
        async with trickle(line, b"GET /health HTTP/1.1\r\nX: " + b"y" * 100):
            assert (await line.answer()).code == 408


async def test_blank_lines_do_not_hold_a_connection(hasty: Door) -> None:
    async with hasty.line() as line:
        await line.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await line.answer()).code == 200
        async with trickle(line, b"\r\n" * 500):
            assert await line.ended()


@pytest.mark.parametrize("path", [b"/echo/raw", b"/streams/count", b"/echo?name=x"])
async def test_a_slow_body(hasty: Door, path: bytes) -> None:
    begun = time.monotonic()
    async with hasty.line() as line:
        await line.send(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n")
        async with trickle(line, b"x" * 2000):  # it would take fifty seconds
            answer = await line.answer()
            assert (answer.code, "body" in answer.json()["detail"]) == (408, True)
            assert time.monotonic() - begun < PROMPT
            assert await line.ended()  # and the rest of it has the time of a head
            assert time.monotonic() - begun < 2 * PROMPT


async def test_a_body_that_never_comes(hasty: Door) -> None:
    async with hasty.line() as line:
        await line.send(b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert (await line.answer()).code == 408
        assert await line.ended()


async def test_a_refused_body_that_trickles(hasty: Door) -> None:
    async with hasty.line() as line:
        await line.send(b"POST /echo/raw HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert (await line.answer()).code == 413
        async with trickle(line, b"x" * 1000):
            assert await line.ended()


async def test_a_stream_may_be_slow(hasty: Door) -> None:
    """Its messages come when they come: only requests that are taken whole have a time."""
    async with hasty.line() as line:
        await line.send(
            b"POST /streams/sum HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(3):
            await line.send(b'c\r\n{"value":1}\n\r\n')
            await asyncio.sleep(SHORT)
        await line.send(b"0\r\n\r\n")
        assert (await line.answer()).json() == {"value": 3}


async def test_a_service_that_hangs(hasty: Door, probe: Probe) -> None:
    answer = await hasty.http.get("/echo/hang?name=hasty")
    assert answer.status_code == 408
    await eventually(lambda: probe.cancelled["hasty"] == 1)


async def test_a_slow_reader_holds_the_service_back(door: Door, probe: Probe) -> None:
    """Down to the handler: it stands still until the client reads on."""
    async with door.line() as line:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await line.send(b"GET /streams/endless?name=slow&size=10000 HTTP/1.1\r\nHost: x\r\n\r\n")
        last = -1

        def stands() -> bool:
            nonlocal last
            before, last = last, probe.produced["slow"]
            return 0 < before == last

        await eventually(stands, every=0.2)
        assert last < 20 * 2**20  # what the kernel holds, mostly
        assert await door.alive()
        line.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await eventually(lambda: probe.produced["slow"] > last + 2**20)
    await eventually(lambda: probe.cancelled["slow"] == 1)


@pytest.mark.parametrize(
    "request_line",
    ["GET /streams/endless?name={} HTTP/1.1", "GET /echo/bytes-of?size=16000000 HTTP/1.1"],
)
async def test_a_reader_that_stops_is_cut_off(
    network: Network, probe: Probe, request_line: str
) -> None:
    """What was made for it does not wait for ever, neither in a handler nor in a buffer. The call
    itself has its time: an answer of 408 would be taken whole."""
    name = "stalled"
    async with open_door(network, stall_timeout=SHORT) as door:
        connections = door.listener._server.server_state.connections
        async with door.line() as line:
            line.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await line.send(f"{request_line.format(name)}\r\nHost: x\r\n\r\n".encode())
            await eventually(lambda: len(connections) == 1)
            await eventually(lambda: not connections, within=PROMPT)
        await eventually(lambda: probe.cancelled[name] == probe.begun[name])
        await eventually(lambda: door.api.metrics.in_flight == 0)


async def test_a_websocket_that_stops_reading_is_cut_off(hasty: Door, probe: Probe) -> None:
    head = (
        b"GET /streams/endless?name=ws-stalled HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with hasty.line() as line:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await line.send(head)
        await eventually(lambda: probe.cancelled["ws-stalled"] == 1)
    await eventually(lambda: hasty.api.metrics.in_flight == 0)


async def test_a_slow_reader_that_reads_is_not_cut_off(network: Network) -> None:
    """Progress counts, however little."""
    async with open_door(network, stall_timeout=SHORT) as door, door.line() as line:
        transport = line.writer.transport
        await line.send(b"GET /echo/bytes-of?size=16000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        await line.head()
        got = 0
        while got < 16_000_000:
            transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(SHORT / 4)
            transport.resume_reading()  # type: ignore[attr-defined]
            got += len(await line.reader.read(2_000_000))
        assert got == 16_000_000


async def test_a_websocket_whose_frames_wait_is_not_taken_for_dead(
    network: Network, probe: Probe
) -> None:
    """The answers to its pings wait behind them."""
    async with open_door(network) as door:
        config = door.listener._server.config
        config.ws_ping_interval = config.ws_ping_timeout = 0.1
        frame = json.dumps({"value": 1, "name": "patient", "pad": "x" * 100_000})
        async with connect(f"{door.ws}/streams/deaf", compression=None) as socket:
            with contextlib.suppress(TimeoutError):
                for _ in range(5000):
                    async with asyncio.timeout(0.6):  # one that is held back
                        await socket.send(frame)
            connection = next(iter(door.listener._server.server_state.connections))
            assert not connection.reading()
            assert probe.cancelled["patient"] == 0
            reset(socket.transport)
        await eventually(lambda: probe.cancelled["patient"] == 1)


async def test_a_websocket_that_is_dead_is_let_go(network: Network, probe: Probe) -> None:
    async with open_door(network) as door:
        config = door.listener._server.config
        config.ws_ping_interval = config.ws_ping_timeout = 0.1
        async with door.line() as line:
            await line.send(
                b"GET /streams/silent?name=dead HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            assert (await line.head())[0] == 101
            await eventually(lambda: probe.begun["dead"] == 1)
            await eventually(lambda: probe.cancelled["dead"] == 1)  # no ping was answered


async def test_a_crowd_that_says_nothing(hasty: Door) -> None:
    """Others are answered meanwhile, and afterwards nothing is left."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(200):
            await stack.enter_async_context(hasty.line())
        assert await hasty.alive()
        connections = hasty.listener._server.server_state.connections
        await eventually(lambda: len(connections) == 0)
