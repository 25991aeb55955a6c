"""A door on a port of its own, and clients that speak to it as bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from micro_ray.api.app import Api
from micro_ray.limits.gate import Gate
from micro_ray.limits.pressure import Pressure
from micro_ray.network.network import Network
from micro_ray.serve.listener import Listener
from micro_ray.settings import Api as ApiSettings

__all__ = ["Answer", "Door", "Line", "open_door", "reset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP response as it came; header names in lower case."""

    code: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def reset(transport: Any) -> None:
    """Close a connection so that its peer knows at once, whatever is still unsent."""
    at_once = struct.pack("ii", 1, 0)
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    transport.abort()


class Line:
    """One connection to the door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next response."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value for name, value in pairs}

    async def answer(self, *, head_only: bool = False) -> Answer:
        """The next response, whole."""
        code, headers = await self.head()
        body = b""
        if not head_only and headers.get("transfer-encoding") == "chunked":
            while piece := await self.chunk():
                body += piece
        elif not head_only:
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(code=code, headers=headers, body=body)

    async def chunk(self) -> bytes:
        """The next chunk of a response; empty at its end. Raises IncompleteReadError when the
        connection ends before."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        piece = await self.reader.readexactly(size + 2)
        return piece[:-2]

    async def ended(self) -> bool:
        """Wait for the door to close; False when it sends something more first."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def cut(self) -> None:
        """Break the connection off with a reset."""
        reset(self.writer.transport)


class Door:
    """An Api behind a Listener. ``http`` is a client of it."""

    def __init__(self, api: Api, listener: Listener, http: httpx.AsyncClient, host: str) -> None:
        self.api = api
        self.listener = listener
        self.http = http
        self.host = host
        self.port = listener.bound

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Line]:
        """A connection."""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=2**24)
        try:
            yield Line(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def exchange(self, data: bytes) -> Answer:
        """Send bytes on a new connection and give the answer."""
        async with self.line() as line:
            await line.send(data)
            return await line.answer()

    async def alive(self) -> bool:
        """Whether the door answers others."""
        answer = await self.exchange(b"GET /echo?name=other HTTP/1.1\r\nHost: x\r\n\r\n")
        return answer.json() == {"message": "Hello other"}

    @property
    def ws(self) -> str:
        return f"ws://{self.host}:{self.port}"


@asynccontextmanager
async def open_door(
    network: Network,
    *,
    gate: Gate | None = None,
    pressure: Pressure | None = None,
    **settings: Any,
) -> AsyncIterator[Door]:
    """A door whose calls go by ``network``; ``settings`` differ from the defaults."""
    chosen = ApiSettings(host="127.0.0.1", **settings)
    api = Api(
        network,
        network.table,
        chosen,
        ready=lambda: bool(network.table.version),
        gate=gate,
        pressure=pressure,
    )
    listener = Listener(api, chosen.host, 0, chosen)
    await listener.start()
    client = httpx.AsyncClient(base_url=f"http://{chosen.host}:{listener.bound}", timeout=20)
    try:
        async with client:
            yield Door(api, listener, client, chosen.host)
    finally:
        await listener.stop(drain=0.5)
