"""The other side of a connection in bytes: what a peer in another language sends, or a bad one.

Frames are packed here by hand, from docs/wire.md alone, so that the tests do not agree with the
code because they are the code.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

HELLO, REQUEST, DATA, ERROR, CANCEL, WINDOW, PING, GOAWAY = range(8)
END, MORE, ACK, BARE = 1, 2, 4, 8
#: Seconds after which a peer that should speak is given up.
PATIENCE = 5.0

GREETING: dict[str, Any] = {
    "magic": "micro",
    "versions": [1, 1],
    "max_frame": 1 << 20,
    "max_message": 16 << 20,
    "window": 256 << 10,
    "max_streams": 10_000,
}


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.payload)

    @property
    def number(self) -> int:
        return int.from_bytes(self.payload, "big")


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">IBBI", 6 + len(payload), kind, flags, stream) + payload


def hello(**changes: Any) -> bytes:
    return frame(HELLO, 0, 0, json.dumps(GREETING | changes).encode())


def request(
    stream: int, body: bytes = b"", flags: int = END, *, header: bytes | None = None, **head: Any
) -> bytes:
    if header is None:
        header = json.dumps({"service": "echo", "endpoint": "Echo.Call"} | head).encode()
    return frame(REQUEST, flags, stream, struct.pack(">H", len(header)) + header + body)


def data(stream: int, body: bytes = b"", flags: int = 0) -> bytes:
    return frame(DATA, flags, stream, body)


def window(stream: int, credit: int) -> bytes:
    return frame(WINDOW, 0, stream, struct.pack(">I", credit))


class Raw:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))

    async def flushed(self) -> None:
        await asyncio.wait_for(self._writer.drain(), PATIENCE)

    def half_close(self) -> None:
        """No more bytes from here, but this side still reads."""
        self._writer.write_eof()

    async def next(self, within: float = PATIENCE) -> Frame:
        """The next frame. Raises EOFError when the peer has closed."""
        async with asyncio.timeout(within):
            try:
                head = await self._reader.readexactly(10)
                length, kind, flags, stream = struct.unpack(">IBBI", head)
                return Frame(kind, flags, stream, await self._reader.readexactly(length - 6))
            except (asyncio.IncompleteReadError, ConnectionError):
                raise EOFError from None

    async def get(self, kind: int, within: float = PATIENCE) -> Frame:
        """The next frame that is not of another kind; only PINGs are passed over."""
        while True:
            found = await self.next(within)
            if found.kind == kind:
                return found
            assert found.kind == PING, found

    async def rest(self, within: float = PATIENCE) -> list[Frame]:
        """All frames until the peer closes."""
        frames = []
        while True:
            try:
                frames.append(await self.next(within))
            except EOFError:
                return frames

    async def greet(self, **changes: Any) -> Frame:
        """Say HELLO first, as a caller does; gives the answer."""
        self.send(hello(**changes))
        return await self.get(HELLO)

    async def close(self) -> None:
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), PATIENCE)
        except (ConnectionError, TimeoutError):
            self._writer.transport.abort()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Raw]:
    """A connection to a server of ours, without a HELLO."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        raw = Raw(*await asyncio.open_unix_connection(rest))
    else:
        host, _, port = rest.rpartition(":")
        raw = Raw(*await asyncio.open_connection(host.strip("[]"), int(port)))
    try:
        yield raw
    finally:
        await raw.close()


@asynccontextmanager
async def caller(address: str, **changes: Any) -> AsyncIterator[Raw]:
    """A connection to a server of ours that has said HELLO."""
    async with connected(address) as raw:
        await raw.greet(**changes)
        yield raw


@asynccontextmanager
async def listening(path: str, serve: Callable[[Raw], Awaitable[None]]) -> AsyncIterator[str]:
    """A server made by hand: ``serve`` talks on each connection; its failure is the test's."""
    tasks: list[asyncio.Task[None]] = []
    raws: list[Raw] = []

    def made(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = Raw(reader, writer)
        raws.append(raw)
        tasks.append(asyncio.ensure_future(_served(raw, serve)))

    server = await asyncio.start_unix_server(made, path)
    try:
        yield f"unix:{path}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for raw in raws:
            await raw.close()
    for outcome in ended:
        if isinstance(outcome, Exception):
            raise outcome


async def _served(raw: Raw, serve: Callable[[Raw], Awaitable[None]]) -> None:
    await serve(raw)
