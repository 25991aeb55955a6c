"""Services that die, lie or flood: their callers get an error, and everybody else an answer."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from micro_ray.network.network import Network
from micro_ray.registry import Endpoint, Instance, Node
from micro_ray.sdk.testing import Here
from micro_ray.settings import Settings, service_environ
from micro_ray.wire.protocol import END, Kind, Limits, encode_frame, encode_hello
from tests.fixtures.wait import eventually
from tests.unit.api.door import Door
from tests.unit.api.services import Probe

pytestmark = pytest.mark.asyncio(loop_scope="package")

MORTAL = """
import asyncio, os
from collections.abc import AsyncIterator
from micro_ray import Service

service = Service("mortal")

@service.endpoint
async def exit() -> None:
    os._exit(3)

@service.endpoint
async def leave() -> None:
    raise SystemExit("enough")

@service.endpoint
async def count(to: int = 2) -> AsyncIterator[int]:
    for number in range(to):
        yield number
    await asyncio.sleep(0.1)
    os._exit(3)

@service.endpoint
async def hang() -> AsyncIterator[int]:
    await asyncio.Event().wait()
    yield 1

service.run()
"""


@asynccontextmanager
async def mortal(town: Here, network: Network) -> AsyncIterator[asyncio.subprocess.Process]:
    """A service in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mo-") as folder:
        main = Path(folder) / "main.py"
        main.write_text(MORTAL)
        environ = service_environ(town.bootstrap, Settings(state=Path(folder)))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(main),
            env=environ | {"PYTHONPATH": os.getcwd()},
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await eventually(lambda: network.table.lookup("micro", "mortal"), within=10)
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await eventually(lambda: not network.table.lookup("micro", "mortal"))


async def test_a_service_that_exits_in_a_call(town: Here, network: Network, door: Door) -> None:
    async with mortal(town, network) as process:
        answer = await door.http.post("/mortal/leave")  # an exception like any other
        assert (answer.status_code, process.returncode) == (500, None)
        answer = await door.http.post("/mortal/exit")
        assert (answer.status_code, answer.json()["status"]) == (502, "Bad Gateway")
        assert await process.wait() == 3
        assert await door.alive()
    answer = await door.http.post("/mortal/exit", headers={"timeout": "0.1"})
    assert answer.status_code in (404, 503, 408)


async def test_a_service_that_dies_in_a_stream(town: Here, network: Network, door: Door) -> None:
    async with mortal(town, network):
        answer = await door.http.get("/mortal/count")
        *before, last = [json.loads(line) for line in answer.text.splitlines()]
        assert before == [0, 1]
        assert last["error"]["code"] == 502


async def test_a_service_that_is_killed_before_its_first_answer(
    town: Here, network: Network, door: Door
) -> None:
    async with mortal(town, network) as process, connect(f"{door.ws}/mortal/hang") as socket:
        await socket.send("{}")
        asked = asyncio.create_task(door.http.get("/mortal/hang"))

        async def both_run() -> bool:
            stats = await network.call("mortal", "Debug.Stats", b"{}")
            return bool(json.loads(stats)["in_flight"] == 2)

        await eventually(both_run)
        process.kill()
        assert (await asked).status_code == 502
        assert json.loads(await socket.recv())["code"] == 502
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1011
        assert await door.alive()


class Liar:
    """Listens where a service would, greets as one, and then says ``words`` to each request. As
    many as the kernel takes, if it is to flood."""

    def __init__(self, words: bytes, flood: bool = False) -> None:
        self.words = words
        self.flood = flood
        self.flooded = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode_hello(Limits()))
        try:
            await reader.read(2**16)  # the client's HELLO
            while await reader.read(2**16):
                writer.write(self.words)
                while self.flood:
                    writer.write(self.words)
                    self.flooded += len(self.words)
                    await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def lying(
    town: Here, network: Network, words: bytes, stream: str = "", flood: bool = False
) -> AsyncIterator[Liar]:
    liar = Liar(words, flood)
    with tempfile.TemporaryDirectory(prefix="li-") as folder:
        path = f"{folder}/liar.sock"
        async with await asyncio.start_unix_server(liar.serve, path):
            node = Node(id="liar-1", addresses=(f"unix:{path}",))
            endpoint = Endpoint(name="Liar.Call", stream=stream)
            await town.registry.register(Instance(service="liar", node=node, endpoints=(endpoint,)))
            try:
                await eventually(lambda: network.table.lookup("micro", "liar"))
                yield liar
            finally:
                await town.registry.deregister("micro", "liar-1")
                await eventually(lambda: not network.table.lookup("micro", "liar"))


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"\xff" * 100,
        b"\0" * 100,
        encode_frame(Kind.REQUEST, 0, 1, b"x"),
        encode_frame(Kind.DATA, END, 99, b"x"),
        encode_frame(Kind.WINDOW, 0, 1, b"x"),
        encode_frame(Kind.DATA, END, 1, b"")[:5],
    ],
    ids=["http", "ones", "zeros", "request", "stream-99", "window", "half-a-frame"],
)
async def test_a_service_that_answers_garbage(
    town: Here, network: Network, door: Door, words: bytes
) -> None:
    async with lying(town, network, words):
        answer = await door.http.post("/liar", headers={"timeout": "0.3"})
        # Half a frame is no garbage yet.
        assert answer.status_code in ((502,) if len(words) != 5 else (408, 502)), answer.text
        assert answer.json()["detail"]
        assert await door.alive()


async def test_an_error_that_cannot_be_read(town: Here, network: Network, door: Door) -> None:
    async with lying(town, network, encode_frame(Kind.ERROR, END, 1, b"\xff")):
        answer = await door.http.post("/liar")
        assert (answer.status_code, "unreadable" in answer.json()["detail"]) == (500, True)


async def test_an_error_with_an_odd_code(town: Here, network: Network, door: Door) -> None:
    for code, status in ((200, 500), (418, 400), (999, 500), (-1, 500)):
        form = json.dumps({"code": code, "detail": "x", "id": 5}).encode()
        async with lying(town, network, encode_frame(Kind.ERROR, END, 1, form)):
            answer = await door.http.post("/liar")
            assert (answer.status_code, answer.json()["code"]) == (status, status)


async def test_an_answer_that_is_not_json_passes(town: Here, network: Network, door: Door) -> None:
    """Bytes in, bytes out: the door does not read answers."""
    async with lying(town, network, encode_frame(Kind.DATA, END, 1, b"\xff\r\n\r\n")):
        answer = await door.http.post("/liar")
        assert (answer.status_code, answer.content) == (200, b"\xff\r\n\r\n")


async def test_a_message_with_breaks_stays_one_line(
    town: Here, network: Network, door: Door
) -> None:
    message = b'{\r\n "a":\r1,\n "b":2\n}'
    words = encode_frame(Kind.DATA, 0, 1, message) + encode_frame(Kind.DATA, END, 1, b"[\n]")
    async with lying(town, network, words, stream="server"):
        answer = await door.http.get("/liar")
        assert [json.loads(x) for x in answer.content.split(b"\n") if x] == [{"a": 1, "b": 2}, []]
    async with lying(town, network, words, stream="server"):
        answer = await door.http.get("/liar", headers={"accept": "text/event-stream"})
        events = answer.content.split(b"\n\n")
        assert b"\r" not in answer.content
        assert all(row.startswith(b"data: ") for row in events[0].split(b"\n"))
        data = b"\n".join(row[6:] for row in events[0].split(b"\n"))
        assert json.loads(data) == {"a": 1, "b": 2}


async def test_a_service_that_floods(town: Here, network: Network, door: Door) -> None:
    """More than it has credit for: its connection ends, the caller gets an error."""
    words = encode_frame(Kind.DATA, 0, 1, b"x" * 60_000)
    async with lying(town, network, words, stream="server", flood=True) as liar:
        async with door.line() as line:
            line.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await line.send(b"GET /liar HTTP/1.1\r\nHost: x\r\n\r\n")
            await eventually(lambda: door.api.metrics.in_flight == 1)
            assert await door.alive()
            await eventually(lambda: liar.flooded > 0)
            line.writer.transport.resume_reading()  # type: ignore[attr-defined]
            body = await asyncio.wait_for(line.reader.read(2**26), 5)
            assert body
        await eventually(lambda: door.api.metrics.in_flight == 0)
        assert liar.flooded < 64 * 2**20
        assert await door.alive()


async def test_a_service_that_listens_no_more(town: Here, network: Network, door: Door) -> None:
    """Registered, and nobody there."""
    node = Node(id="ghost-1", addresses=("unix:/nowhere/ghost.sock", "tcp:127.0.0.1:1"))
    instance = Instance(service="ghost", node=node, endpoints=(Endpoint(name="Ghost.Call"),))
    await town.registry.register(instance)
    try:
        await eventually(lambda: network.table.lookup("micro", "ghost"))
        answer = await door.http.post("/ghost", headers={"timeout": "0.3"})
        assert answer.status_code in (503, 504, 408)
        assert answer.json()["detail"]
        assert await door.alive()
    finally:
        await town.registry.deregister("micro", "ghost-1")


async def test_others_are_answered_while_one_hangs(door: Door, probe: Probe) -> None:
    calls = [asyncio.create_task(door.http.get("/echo/hang?name=crowd")) for _ in range(50)]
    await eventually(lambda: probe.begun["crowd"] == 50)
    for _ in range(5):
        assert await door.alive()
    probe.release.set()
    try:
        answers: list[httpx.Response] = await asyncio.gather(*calls)
    finally:
        probe.release.clear()
    assert all(answer.json() == {"name": "crowd"} for answer in answers)
