"""Clients that leave: what is being done for them ends, whatever it is."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from websockets.asyncio.client import connect

from tests.fixtures.wait import eventually
from tests.unit.api.door import Door, reset
from tests.unit.api.services import Probe

pytestmark = pytest.mark.asyncio(loop_scope="package")

POST = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def gone(probe: Probe, door: Door, name: str) -> None:
    """The handler of that name has been cancelled, and the door counts nothing as under way."""
    await eventually(lambda: probe.cancelled[name] == probe.begun[name] == 1)
    await eventually(lambda: door.api.metrics.in_flight == 0)


@pytest.mark.parametrize("how", ["reset", "close", "half"])
async def test_a_unary_call(door: Door, probe: Probe, how: str) -> None:
    name = f"unary-{how}"
    async with door.line() as line:
        await line.send(f"GET /echo/hang?name={name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await eventually(lambda: probe.begun[name] == 1)
        if how == "half":
            line.writer.write_eof()  # half-closed is closed
            await gone(probe, door, name)
            assert await line.ended()
        elif how == "reset":
            line.cut()
        else:
            line.writer.close()
    await gone(probe, door, name)
    assert await door.alive()


async def test_a_call_with_others_behind_it(door: Door, probe: Probe) -> None:
    """Sent at once; the first is being served, the others are never begun."""
    async with door.line() as line:
        sent = (f"GET /echo/hang?name=piped-{i} HTTP/1.1\r\nHost: x\r\n\r\n" for i in range(3))
        await line.send("".join(sent).encode())
        await eventually(lambda: probe.begun["piped-0"] == 1)
    await gone(probe, door, "piped-0")
    assert probe.begun["piped-1"] == probe.begun["piped-2"] == 0


async def test_the_count_says_so(door: Door, probe: Probe) -> None:
    text = (await door.http.get("/metrics")).text
    rows = [row for row in text.splitlines() if row.startswith("micro_api_requests_total")]
    before = sum(int(row.split()[1]) for row in rows if 'code="499"' in row)
    async with door.line() as line:
        await line.send(b"GET /echo/hang?name=counted HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: probe.begun["counted"] == 1)
    await gone(probe, door, "counted")
    text = (await door.http.get("/metrics")).text
    rows = [row for row in text.splitlines() if row.startswith("micro_api_requests_total")]
    assert sum(int(row.split()[1]) for row in rows if 'code="499"' in row) == before + 1


async def test_a_client_that_leaves_early_in_a_body(door: Door, probe: Probe) -> None:
    """Nothing is called with half a body."""
    name = "half-a-body"
    async with door.line() as line:
        head = b"POST /echo/hang HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        await line.send(head + json.dumps({"name": name}).encode())
        await eventually(lambda: door.api.metrics.in_flight == 1)
    await eventually(lambda: door.api.metrics.in_flight == 0)
    assert probe.begun[name] == 0


async def test_a_server_stream(door: Door, probe: Probe) -> None:
    for name, path in (("quiet-get", "/streams/silent"), ("loud-get", "/streams/endless")):
        async with door.line() as line:
            await line.send(f"GET {path}?name={name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await eventually(lambda name=name: probe.begun[name] == 1)
        await gone(probe, door, name)


async def test_a_stream_both_ways_whose_body_has_ended(door: Door, probe: Probe) -> None:
    """The body was whole: nothing of it is read any more, and the leave is seen all the same."""
    async with door.line() as line:
        data = b'{"value":5,"name":"deaf-http"}\n'
        await line.send(POST % b"/streams/deaf" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        assert (await line.head())[0] == 200
        assert await line.chunk() == b'{"value":5}\n'
    await gone(probe, door, "deaf-http")


async def test_a_stream_both_ways_in_its_middle(door: Door, probe: Probe) -> None:
    async with door.line() as line:
        data = b'{"value":5,"name":"deaf-open"}\n'
        await line.send(POST % b"/streams/deaf" + b"%x\r\n%b\r\n" % (len(data), data))
        assert (await line.head())[0] == 200
        assert await line.chunk() == b'{"value":5}\n'
    await gone(probe, door, "deaf-open")


async def test_a_websocket_in_a_unary_call(door: Door, probe: Probe) -> None:
    for name, how in (("ws-close", "close"), ("ws-cut", "cut"), ("ws-queue", "queue")):
        async with connect(f"{door.ws}/echo/hang") as socket:
            await socket.send(json.dumps({"name": name}))
            await eventually(lambda name=name: probe.begun[name] == 1)
            if how == "queue":
                await socket.send(json.dumps({"name": "never"}))
            if how == "cut":
                socket.transport.abort()
        await gone(probe, door, name)
    assert probe.begun["never"] == 0


async def test_a_websocket_in_a_stream(door: Door, probe: Probe) -> None:
    async with connect(f"{door.ws}/streams/silent?name=ws-silent"):
        await eventually(lambda: probe.begun["ws-silent"] == 1)
    await gone(probe, door, "ws-silent")
    async with connect(f"{door.ws}/streams/deaf") as socket:
        await socket.send('{"value":5,"name":"ws-deaf"}')
        assert await socket.recv() == '{"value":5}'
        await socket.send("")
    await gone(probe, door, "ws-deaf")


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_websocket_that_is_held_back(door: Door, probe: Probe, kind: str) -> None:
    """Its frames wait unread before the door, and its end behind them."""
    name = f"ws-held-{kind}"
    frame = json.dumps({"value": 1, "name": name, "pad": "x" * 100_000})
    path = "/echo/hang" if kind == "unary" else "/streams/deaf"
    async with connect(f"{door.ws}{path}", compression=None) as socket:
        with contextlib.suppress(TimeoutError):
            for _ in range(5000):
                async with asyncio.timeout(0.5):  # one that is held back
                    await socket.send(frame)
        await eventually(lambda: probe.begun[name] == 1)
        reset(socket.transport)
    await gone(probe, door, name)


async def test_tasks_do_not_grow(door: Door, probe: Probe) -> None:
    """Forty that leave in the middle of everything leave nothing behind."""

    async def one(path: str) -> None:
        async with door.line() as line:
            await line.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            if "count" in path:
                await line.head()

    assert await door.alive()
    await eventually(lambda: door.api.metrics.in_flight == 0)
    before = len(asyncio.all_tasks())
    paths = ["/streams/endless?name=many", "/streams/silent?name=many", "/echo/hang?name=many",
             "/streams/count?to=100000"]  # fmt: skip
    await asyncio.gather(*(one(path) for path in paths * 10))
    await eventually(lambda: door.api.metrics.in_flight == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= before)
    assert probe.cancelled["many"] == probe.begun["many"]
