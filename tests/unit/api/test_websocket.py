"""Endpoints over WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from micro_ray.network.network import Network
from tests.fixtures.wait import eventually
from tests.unit.api.door import Door, open_door
from tests.unit.api.services import Probe

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def rest(socket: ClientConnection) -> tuple[list[Any], int, str]:
    """The frames that still come, the code of the close and its reason."""
    frames = [frame async for frame in _frames(socket)]
    return frames, socket.close_code or 0, socket.close_reason or ""


async def _frames(socket: ClientConnection) -> AsyncIterator[Any]:
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield await socket.recv()


async def test_a_call_per_frame(door: Door) -> None:
    async with connect(f"{door.ws}/echo/call") as socket:
        for name in ("a", "b"):
            await socket.send(json.dumps({"name": name}))
            assert await socket.recv() == f'{{"message":"Hello {name}"}}'
        await socket.send(b'{"name":"bytes"}')
        assert await socket.recv() == '{"message":"Hello bytes"}'
        await socket.send("")
        assert await socket.recv() == '{"message":"Hello World"}'


async def test_frames_are_answered_in_order(door: Door) -> None:
    async with connect(f"{door.ws}/echo/call") as socket:
        for number in range(100):
            await socket.send(json.dumps({"name": str(number)}))
        for number in range(100):
            assert json.loads(await socket.recv())["message"] == f"Hello {number}"


async def test_fields_of_path_and_query_go_with_every_frame(door: Door) -> None:
    async with connect(f"{door.ws}/users/5?verbose") as socket:
        for _ in range(2):
            await socket.send("{}")
            assert json.loads(await socket.recv()) == {"read": 5, "verbose": True}
    async with connect(f"{door.ws}/users/5/files/x") as socket:
        await socket.send("{}")
        assert json.loads(await socket.recv()) == {"id": 5, "file": "x"}


async def test_bytes(door: Door) -> None:
    body = bytes(range(256)) * 300
    async with connect(f"{door.ws}/echo/raw") as socket:
        await socket.send(body)
        assert await socket.recv() == body
    async with connect(f"{door.ws}/streams/mirror") as socket:
        await socket.send(body)
        assert await socket.recv() == body
        await socket.send(b"")  # no text: a message of no bytes
        assert await socket.recv() == b""
        await socket.send("")
        assert await rest(socket) == ([], 1000, "")


async def test_a_server_stream(door: Door) -> None:
    numbers = [f'{{"value":{value}}}' for value in (1, 2)]
    async with connect(f"{door.ws}/streams/count?to=2") as socket:
        assert await rest(socket) == (numbers, 1000, "")
    async with connect(f"{door.ws}/streams/count") as socket:
        await socket.send('{"to":2}')
        assert await rest(socket) == (numbers, 1000, "")
    async with connect(f"{door.ws}/rooms/blue/events") as socket:
        frames, code, _ = await rest(socket)
        assert (len(frames), code) == (2, 1000)


async def test_a_client_stream_ends_with_an_empty_text(door: Door) -> None:
    async with connect(f"{door.ws}/streams/sum?value=10") as socket:
        for value in (1, 2, 3):
            await socket.send(json.dumps({"value": value}))
        await socket.send("")
        assert await rest(socket) == (['{"value":16}'], 1000, "")


async def test_both_ways(door: Door) -> None:
    async with connect(f"{door.ws}/streams/double") as socket:
        for value in (1, 2, 3):
            await socket.send(json.dumps({"value": value}))
            assert json.loads(await socket.recv()) == {"value": value * 2}
        await socket.send("")
        assert await rest(socket) == ([], 1000, "")


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/ecko/call", 404, "did you mean /echo?"),
        ("/echo/cal", 404, "Echo.Call"),
        ("/streams/count?to=x", 400, "'to'"),
        ("/users/x", 400, "'id'"),
        ("/echo/%zz", 400, "hexadecimal"),
        ("/echo/%2e%2e/x", 400, "'..'"),
    ],
)
async def test_what_is_not_there_is_refused_before_the_handshake(
    door: Door, path: str, code: int, said: str
) -> None:
    with pytest.raises(InvalidStatus) as raised:
        await connect(f"{door.ws}{path}", additional_headers={"x-request-id": "mine"})
    answer = raised.value.response
    assert answer.status_code == code
    assert said in json.loads(answer.body)["detail"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "mine"
    assert await door.alive()


async def test_the_handshake_has_the_id(door: Door) -> None:
    async with connect(f"{door.ws}/echo/context", additional_headers={
        "x-request-id": "mine", "timeout": "5", "micro-caller": "admin",
    }) as socket:  # fmt: skip
        assert socket.response is not None
        assert socket.response.headers["x-request-id"] == "mine"
        await socket.send("{}")
        seen = json.loads(await socket.recv())
        assert (seen["request_id"], seen["caller"]) == ("mine", "")
        assert 4 < seen["remaining"] <= 5.01


@pytest.mark.parametrize(
    ("path", "frame", "code", "closed"),
    [
        ("/echo/fail", '{"code":409}', 409, 1008),
        ("/echo/fail", '{"code":413}', 413, 1009),
        ("/echo/fail", '{"code":503}', 503, 1011),
        ("/echo/crash", "{}", 500, 1011),
        ("/echo/call", "{", 400, 1008),
        ("/echo/call?x=1", "{", 400, 1008),
        ("/echo/call", '{"name":5}', 400, 1008),
        ("/streams/double", "garbage", 400, 1008),
        ("/streams/count", '{"to":"x"}', 400, 1008),
    ],
)
async def test_an_error_is_the_last_frame(
    door: Door, path: str, frame: str, code: int, closed: int
) -> None:
    async with connect(f"{door.ws}{path}") as socket:
        await socket.send(frame)
        frames, got, reason = await rest(socket)
        form = json.loads(frames[-1])
        assert (form["code"], got, reason) == (code, closed, form["status"])
    assert await door.alive()


async def test_a_late_error_comes_behind_what_came_before(door: Door) -> None:
    async with connect(f"{door.ws}/streams/count?to=50&fail=503") as socket:
        frames, code, _ = await rest(socket)
        assert [json.loads(f).get("value") for f in frames[:-1]] == list(range(1, 51))
        assert (json.loads(frames[-1])["code"], code) == (503, 1011)


@pytest.mark.parametrize("path", ["/streams/silent?name=extra", "/streams/deaf"])
async def test_a_frame_too_many(door: Door, path: str) -> None:
    async with connect(f"{door.ws}{path}") as socket:
        if "deaf" in path:
            await socket.send('{"value":1,"name":"extra"}')
            await socket.recv()
            await socket.send("")
        await socket.send("{}")
        frames, code, _ = await rest(socket)
        assert (json.loads(frames[0])["code"], code) == (400, 1008)
        assert "a frame too many" in json.loads(frames[0])["detail"]


async def test_frames_are_bounded(network: Network) -> None:
    async with open_door(network, max_body=1000) as door:
        async with connect(f"{door.ws}/echo/raw") as socket:
            await socket.send(b"x" * 1000)
            assert len(await socket.recv()) == 1000
            await socket.send(b"x" * 1001)
            _, code, _ = await rest(socket)
            assert code == 1009
        async with connect(f"{door.ws}/echo/raw") as socket:  # neither in pieces
            await socket.send([b"x" * 600, b"x" * 600])
            _, code, _ = await rest(socket)
            assert code == 1009
        async with connect(f"{door.ws}/echo/raw", compression="deflate") as socket:
            await socket.send(b"\0" * 100_000)  # a hundred bytes on the wire
            _, code, _ = await rest(socket)
            assert code == 1009
        assert await door.alive()


async def test_the_deadline_ends_a_call(door: Door, probe: Probe) -> None:
    for path in ("/echo/hang?name=ws-late", "/streams/silent?name=ws-late"):
        before = probe.cancelled["ws-late"]
        async with connect(f"{door.ws}{path}", additional_headers={"timeout": "0.05"}) as socket:
            if "hang" in path:
                await socket.send("{}")
            frames, code, _ = await rest(socket)
            assert (json.loads(frames[0])["code"], code) == (408, 1008)
        await eventually(lambda before=before: probe.cancelled["ws-late"] == before + 1)
    with pytest.raises(InvalidStatus):
        await connect(f"{door.ws}/echo/call", additional_headers={"timeout": "x"})


async def test_they_count_as_under_way(network: Network) -> None:
    async with open_door(network, max_in_flight=2) as door:
        async with connect(f"{door.ws}/echo/call"), connect(f"{door.ws}/echo/call"):
            with pytest.raises(InvalidStatus) as raised:
                await connect(f"{door.ws}/echo/call")
            assert raised.value.response.status_code == 503
            assert raised.value.response.headers["retry-after"] == "1"
            assert (await door.http.get("/echo")).status_code == 503
            text = (await door.http.get("/metrics")).text
            assert "micro_api_in_flight 2" in text
        await eventually(lambda: door.api.metrics.in_flight == 0)
        assert await door.alive()
        text = (await door.http.get("/metrics")).text
        assert 'micro_api_requests_total{namespace="micro",service="echo",code="101"} 2' in text


async def test_a_slow_reader_holds_the_service_back(door: Door, probe: Probe) -> None:
    """Its frames are not gathered anywhere: the producer stands still."""
    async with connect(f"{door.ws}/streams/endless?name=ws-slow&size=10000", max_queue=2,
                       compression=None) as socket:  # fmt: skip
        await socket.recv()
        last = -1

        def stands() -> bool:
            nonlocal last
            before, last = last, probe.produced["ws-slow"]
            return before == last

        await eventually(stands, every=0.2)
        assert last < 20 * 2**20
        for _ in range(500):
            await socket.recv()
        await eventually(lambda: probe.produced["ws-slow"] > last)
        closing = asyncio.create_task(socket.close())
        async with asyncio.timeout(5):
            async for _ in socket:  # or what is on its way would be before the answer for ever
                pass
            await closing
    await eventually(lambda: probe.cancelled["ws-slow"] == 1)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /echo/call HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"POST /echo/call HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        b"GET /echo/call HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 7\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    ],
)
async def test_bad_handshakes(door: Door, head: bytes) -> None:
    async with door.line() as line:
        await line.send(head)
        code, _ = await line.head()
        assert 400 <= code < 500
    assert await door.alive()


async def test_frames_that_break_the_protocol(door: Door) -> None:
    head = (
        b"GET /echo/call HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    text = b"\x81\x82\0\0\0\0\xff\xff"  # masked, but no UTF-8
    for garbage in (b"\xff" * 100, b"\x81\x02{}", b"\x83\x80\0\0\0\0", text, b"GET / HTTP/1.1\r\n"):
        async with door.line() as line:
            await line.send(head)
            assert (await line.head())[0] == 101
            await line.send(garbage)
            assert (await line.reader.read())[:1] in (b"\x88", b"")
    await eventually(lambda: door.api.metrics.in_flight == 0)
    assert await door.alive()
