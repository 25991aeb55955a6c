"""The application under a server that says less than ours: Ray Serve's own route, for one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from micro_ray.api.app import Api
from micro_ray.network.network import Network
from micro_ray.settings import Api as ApiSettings
from tests.fixtures.wait import eventually
from tests.unit.api.services import Probe

pytestmark = pytest.mark.asyncio(loop_scope="package")


class Client:
    """One request, as ASGI messages. It is there until :meth:`leave`."""

    def __init__(self, network: Network, path: str, body: bytes = b"", kind: str = "http") -> None:
        self.api = Api(network, network.table, ApiSettings(), ready=lambda: True)
        self.sent: list[Mapping[str, Any]] = []
        self.left = asyncio.Event()
        self.come: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self.kind = kind
        if kind == "http":
            self.come.put_nowait({"type": "http.request", "body": body, "more_body": False})
        else:
            self.come.put_nowait({"type": "websocket.connect"})
        path, _, query = path.partition("?")
        self.scope = {
            "type": kind,
            "http_version": "1.1",
            "method": "POST" if body else "GET",
            "path": path,
            "query_string": query.encode(),
            "headers": [(b"content-length", b"%d" % len(body))] if body else [],
        }
        self.task = asyncio.create_task(self.api(self.scope, self.receive, self.send))

    async def receive(self) -> Mapping[str, Any]:
        if not self.left.is_set():
            getting = asyncio.create_task(self.come.get())
            leaving = asyncio.create_task(self.left.wait())
            try:
                await asyncio.wait({getting, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    return getting.result()
            finally:
                getting.cancel()
                leaving.cancel()
        return {"type": f"{self.kind}.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        self.sent.append(message)

    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.sent if m["type"] == "http.response.body")


async def test_a_call(network: Network) -> None:
    client = Client(network, "/echo/call", b'{"name":"x"}')
    await client.task
    assert client.sent[0]["status"] == 200
    assert client.body() == b'{"message":"Hello x"}'


async def test_a_stream(network: Network) -> None:
    client = Client(network, "/streams/double", b'{"value":1}\n{"value":2}')
    await client.task
    assert client.body() == b'{"value":2}\n{"value":4}\n'
    assert client.sent[-1]["more_body"] is False


@pytest.mark.parametrize("path", ["/echo/hang", "/streams/silent", "/streams/deaf"])
async def test_leaving_ends_what_is_under_way(network: Network, probe: Probe, path: str) -> None:
    name = f"other{path}"
    client = Client(network, path, json.dumps({"name": name, "value": 1}).encode())
    await eventually(lambda: probe.begun[name] == 1)
    client.left.set()
    await asyncio.wait_for(client.task, 5)
    await eventually(lambda: probe.cancelled[name] == 1)
    assert client.api.metrics.in_flight == 0


async def test_a_server_that_cancels(network: Network, probe: Probe) -> None:
    """Some do when a client leaves; the handler hears of it."""
    for name, path in (("cancel-unary", "/echo/hang"), ("cancel-stream", "/streams/silent")):
        client = Client(network, f"{path}?name={name}")
        await eventually(lambda name=name: probe.begun[name] == 1)
        client.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.task
        await eventually(lambda name=name: probe.cancelled[name] == 1)
        assert client.api.metrics.in_flight == 0


async def test_a_websocket_refused_where_no_status_can_be_said(network: Network) -> None:
    client = Client(network, "/no/thing", kind="websocket")
    await client.task
    assert [message["type"] for message in client.sent] == ["websocket.close"]
    assert client.sent[0]["code"] == 1008


async def test_a_websocket(network: Network, probe: Probe) -> None:
    client = Client(network, "/echo/hang?name=other-ws", kind="websocket")
    client.come.put_nowait({"type": "websocket.receive", "text": "{}"})
    await eventually(lambda: probe.begun["other-ws"] == 1)
    client.left.set()
    await asyncio.wait_for(client.task, 5)
    await eventually(lambda: probe.cancelled["other-ws"] == 1)
    assert client.sent[0]["type"] == "websocket.accept"
