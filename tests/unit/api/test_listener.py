"""The listener: binding, sharing a port, and leaving it without losing a request."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from micro_ray.errors import Conflict, Unavailable
from micro_ray.serve import listener as listener_module
from micro_ray.serve import protocols
from micro_ray.serve.listener import Listener
from micro_ray.settings import Api as ApiSettings
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.api.door import Line

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times that a stop gives to idle connections and to what it has cut off."""
    monkeypatch.setattr(protocols, "LAST_REQUEST", 0.3)
    monkeypatch.setattr(listener_module, "LAST", 0.2)


class App:
    """Answers its name; ``/slow`` when the test says so, ``/stream`` piece by piece for ever."""

    def __init__(self, name: str = "app") -> None:
        self.name = name
        self.release = asyncio.Event()
        self.under_way = 0
        self.answered = 0
        self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.under_way += 1
        try:
            await (self.socket if scope["type"] == "websocket" else self.http)(scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    async def http(self, scope: Any, receive: Any, send: Any) -> None:
        body = self.name.encode()
        if scope["path"] == "/slow":
            await self.release.wait()
        headers = [(b"content-length", b"%d" % len(body))] if scope["path"] != "/stream" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while scope["path"] == "/stream":
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": body})
        self.answered += 1

    async def socket(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass


@asynccontextmanager
async def listening(
    app: Any, host: str = "127.0.0.1", port: int = 0, drain: float = 5.0, **settings: Any
) -> AsyncIterator[Listener]:
    listener = Listener(app, host, port, ApiSettings(**settings))
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop(drain)


@asynccontextmanager
async def line_to(listener: Listener, host: str = "127.0.0.1") -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection(host, listener.bound)
    try:
        yield Line(reader, writer)
    finally:
        writer.transport.abort()


async def test_a_free_port() -> None:
    async with listening(App()) as listener:
        assert listener.bound > 0
        assert listener.serving
        async with line_to(listener) as line:
            await line.send(GET)
            assert (await line.answer()).body == b"app"
    assert not listener.serving


async def test_ipv6() -> None:
    async with listening(App(), "::1") as listener, line_to(listener, "::1") as line:
        await line.send(GET)
        assert (await line.answer()).body == b"app"


async def test_a_port_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        listener = Listener(App(), "127.0.0.1", port, ApiSettings())
        with pytest.raises(Conflict, match=f"port {port} on 127.0.0.1 is in use"):
            await listener.start()
        assert not listener.serving
        await listener.stop()


@pytest.mark.parametrize(
    ("host", "port"),
    [("192.0.2.1", 0), ("no.such.host.invalid", 0), ("127.0.0.1", 70_000), ("::x", 0)],
)
async def test_what_cannot_be_bound(host: str, port: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    listener = Listener(App(), host, port, ApiSettings())
    with pytest.raises(Unavailable, match="cannot listen on"):
        await listener.start()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_two_share_a_port() -> None:
    one, two = App("one"), App("two")
    async with listening(one) as first, listening(two, port=first.bound) as second:
        assert first.bound == second.bound
        seen = set()
        for _ in range(100):
            async with line_to(first) as line:
                await line.send(GET)
                seen.add((await line.answer()).body)
        assert seen == {b"one", b"two"}


async def test_nothing_is_left() -> None:
    """No task, no socket, no port."""
    async with listening(App()):
        pass  # a loop may keep something for itself from the first one on
    tasks, files = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
    async with listening(App()) as listener:
        for _ in range(10):
            async with line_to(listener) as line:
                await line.send(GET)
                await line.answer()
    await eventually(lambda: len(os.listdir("/proc/self/fd")) == files)
    assert len(asyncio.all_tasks()) == tasks
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", listener.bound)
    async with listening(App(), port=listener.bound):  # at once, whatever lingers in the kernel
        pass


async def test_stopping_twice_and_before_a_start() -> None:
    listener = Listener(App(), "127.0.0.1", 0, ApiSettings())
    await listener.stop()
    await listener.start()
    await listener.stop()
    await listener.stop()


async def test_what_is_under_way_is_finished() -> None:
    app = App()
    async with listening(app) as listener, line_to(listener) as line:
        await line.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: app.under_way == 1)
        stopping = asyncio.create_task(listener.stop())
        await eventually(lambda: refused(listener.bound))
        assert not listener.serving
        app.release.set()
        answer = await line.answer()
        assert (answer.body, answer.headers["connection"]) == (b"app", "close")
        assert await line.ended()
        await asyncio.wait_for(stopping, PROMPT)


async def refused(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.transport.abort()
    return False


async def test_an_idle_connection_may_bring_one_last_request() -> None:
    """It was on its way, perhaps: closing at once would lose it."""
    app = App()
    async with listening(app) as listener, line_to(listener) as used, line_to(listener) as fresh:
        await used.send(GET)
        assert "connection" not in (await used.answer()).headers
        stopping = asyncio.create_task(listener.stop())
        await eventually(lambda: refused(listener.bound))
        for line in (used, fresh):
            await line.send(GET)
            answer = await line.answer()
            assert (answer.body, answer.headers["connection"]) == (b"app", "close")
            assert await line.ended()
        await stopping


async def test_a_request_that_comes_with_the_close() -> None:
    """At the very end, what the kernel holds is looked for once more."""
    app = App()
    async with listening(app) as listener, line_to(listener) as line:
        await line.send(GET)
        await line.answer()
        connection = next(iter(listener._server.server_state.connections))
        stopping = asyncio.create_task(listener.stop())
        await eventually(lambda: refused(listener.bound))
        connection.transport.pause_reading()
        await line.send(GET)
        await asyncio.sleep(0.5)  # past the last moment, with bytes that were not read
        connection.transport.resume_reading()
        assert (await line.answer()).body == b"app"
        await stopping


async def test_idle_connections_do_not_hold_a_stop() -> None:
    async with listening(App()) as listener, line_to(listener), line_to(listener) as used:
        await used.send(GET)
        await used.answer()
        begun = asyncio.get_running_loop().time()
        await listener.stop(50)
        assert asyncio.get_running_loop().time() - begun < PROMPT
        assert await used.ended()


async def test_connections_that_were_not_yet_accepted_are_served() -> None:
    """The kernel has taken them; closing the socket would reset them."""
    app = App()
    async with listening(app) as listener:
        socks = []
        for _ in range(50):
            sock = socket.socket()
            sock.connect(("127.0.0.1", listener.bound))  # at once, without a turn of the loop
            sock.sendall(GET)
            sock.setblocking(False)
            socks.append(sock)
        begun = asyncio.get_running_loop().time()
        await listener.stop(50)
        assert asyncio.get_running_loop().time() - begun < PROMPT  # and told that they close
        for sock in socks:
            assert b"200 OK" in sock.recv(1000)
            sock.close()
    assert app.answered == 50


async def test_connections_that_come_in_every_turn_of_the_loop_are_served() -> None:
    """Whatever the loop is doing with them at the moment of the close."""
    app = App()
    async with listening(app) as listener:
        socks = []
        stopping = asyncio.create_task(listener.stop())
        for _ in range(5000):
            sock = socket.socket()
            try:
                sock.connect(("127.0.0.1", listener.bound))
            except ConnectionRefusedError:
                sock.close()
                break
            sock.sendall(GET)
            sock.setblocking(False)
            socks.append(sock)
            await asyncio.sleep(0)
        await stopping
        lost = [sock for sock in socks if not answered(sock)]
    assert socks
    assert not lost, f"{len(lost)} of {len(socks)}"


def answered(sock: socket.socket) -> bool:
    with sock, suppress(OSError):
        return b"200 OK" in sock.recv(1000)
    return False


@pytest.mark.parametrize("path", ["slow", "stream", "body"])
async def test_the_drain_has_an_end(path: str) -> None:
    """What is not over by then is told so where it still can be."""
    app = App()
    async with listening(app) as listener, line_to(listener) as line:
        length = b"Content-Length: 9\r\n" if path == "body" else b""
        await line.send(b"POST /%b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path.encode(), length))
        await eventually(lambda: app.under_way == 1 or app.answered)
        begun = asyncio.get_running_loop().time()
        await listener.stop(0.2)
        assert asyncio.get_running_loop().time() - begun < PROMPT
        assert app.under_way == 0
        if path == "slow":
            answer = await line.answer()
            assert (answer.code, answer.json()["status"]) == (502, "Bad Gateway")
        assert await ends(line)
    assert not listener._server.server_state.tasks


async def ends(line: Line) -> bool:
    with suppress(ConnectionError):
        await line.reader.read()
    return line.reader.at_eof() or line.reader.exception() is not None


async def test_websockets_are_told_to_come_again() -> None:
    app = App()
    async with listening(app) as listener:
        url = f"ws://127.0.0.1:{listener.bound}/"
        async with connect(url) as peer:
            await listener.stop()
            with pytest.raises(ConnectionClosed):
                await peer.recv()
            assert peer.close_code == 1012
    assert app.under_way == 0


async def test_a_websocket_that_comes_with_the_stop() -> None:
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with listening(App()) as listener, line_to(listener) as line:
        stopping = asyncio.create_task(listener.stop())
        await eventually(lambda: refused(listener.bound))
        await line.send(upgrade)
        assert (await line.answer()).code == 503
        await asyncio.wait_for(stopping, 3)


async def one_by_one(port: int, results: list[str], going: Callable[[], bool]) -> None:
    """A client that connects anew for each request."""
    while going():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET)
            answer = await Line(reader, writer).answer()
            results.append(answer.body.decode())
            writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            results.append(repr(error))


async def kept_alive(port: int, results: list[str], going: Callable[[], bool]) -> None:
    """A client that uses its connection until it is told that it closes."""
    while going():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        line = Line(reader, writer)
        while going():
            try:
                await line.send(GET)
                answer = await line.answer()
            except (OSError, asyncio.IncompleteReadError) as error:
                results.append(repr(error))
                break
            results.append(answer.body.decode())
            if answer.headers.get("connection") == "close":
                break
        writer.close()


async def test_no_request_is_lost_while_listeners_come_and_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Replaced one after the other under load, as in a rolling update."""
    monkeypatch.setattr(protocols, "LAST_REQUEST", 2.0)  # more than a busy machine stands still
    results: list[str] = []
    busy = True
    app = App("app")
    old = Listener(app, "127.0.0.1", 0, ApiSettings())
    await old.start()
    port = old.bound
    clients = [
        asyncio.create_task(client(port, results, lambda: busy))
        for client in (one_by_one, kept_alive)
        for _ in range(8)
    ]
    for _ in range(4):
        new = Listener(app, "127.0.0.1", port, ApiSettings())
        await new.start()
        count = len(results)
        await eventually(lambda count=count: len(results) > count + 50)
        await old.stop()
        old = new
    busy = False
    await asyncio.gather(*clients)
    await old.stop()
    assert set(results) == {"app"}, set(results)
    assert len(results) > 400
