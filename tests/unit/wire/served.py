"""Endpoints behind a real socket, called with JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from micro_ray.network import Call, Peer
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.server import Server

JSON = "application/json"


class Served:
    """A service ``test`` with what :meth:`add` gives it."""

    def __init__(self, endpoints: Endpoints, peer: Peer) -> None:
        self.endpoints = endpoints
        self.peer = peer

    def add(self, function: Any, name: str = "Test.Call", **options: Any) -> None:
        self.endpoints.add(name, function, **options)

    def head(self, name: str, content: str = JSON, **changes: Any) -> Call:
        given = {"service": "test", "endpoint": name, "content": content, "timeout": 20.0}
        return Call(**{**given, **changes})

    async def call(
        self, value: Any = None, name: str = "Test.Call", *, body: bytes | None = None, **head: Any
    ) -> Any:
        """A unary call; ``body`` instead of ``value`` goes as it is."""
        body = json.dumps({} if value is None else value).encode() if body is None else body
        answer = await self.peer.call(self.head(name, **head), body)
        return json.loads(answer)

    async def stream(self, *values: Any, name: str = "Test.Call", **head: Any) -> list[Any]:
        """All requests, then all answers."""
        async with await self.peer.open(self.head(name, **head)) as stream:
            for value in values:
                await stream.send(json.dumps(value).encode())
            await stream.end()
            return [json.loads(message) async for message in stream]

    def published(self, name: str = "Test.Call") -> Mapping[str, Any]:
        (found,) = (e for e in self.endpoints.published if e.name == name)
        return {
            "request": found.request,
            "response": found.response,
            "stream": found.stream,
            "metadata": found.metadata,
        }


@asynccontextmanager
async def serving(endpoints: Endpoints) -> AsyncIterator[Peer]:
    """A connection to a server of these endpoints."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="wi-")))
        server = await stack.enter_async_context(Server(endpoints.handler))
        address = await server.listen(f"unix:{folder}/s.sock")
        peer = await WireDialer().dial(address, timeout=5)
        stack.push_async_callback(peer.close)
        yield peer
