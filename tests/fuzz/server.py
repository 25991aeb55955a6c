"""A serving connection under a caller that sends whatever it likes."""

from __future__ import annotations

import asyncio
import json
import struct

from micro_ray.errors import NotFound
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Incoming, Server, ServerConnection
from tests.fuzz.books import (
    BARE,
    CANCEL,
    DATA,
    END,
    ERROR,
    GOAWAY,
    HELLO,
    PING,
    REQUEST,
    WINDOW,
    Books,
    Given,
    Peer,
)
from tests.fuzz.pipe import Pipe, Reader, frame, turn
from tests.fuzz.source import Source

LIMITS = Limits(
    max_frame=1024, max_message=2048, max_header=1024, window=1024, max_streams=4, max_buffered=2048
)
#: What the caller says of itself.
WINDOW_SIZE, MAX_FRAME = 1024, 1024
GREETING = json.dumps(
    {
        "magic": "micro", "versions": [1, 1], "max_frame": MAX_FRAME, "max_message": 4096,
        "window": WINDOW_SIZE, "max_streams": 9,
    }
).encode()  # fmt: skip
ENDPOINTS = ("echo", "pour", "listen", "hang", "raise", "exit", "quit", "cut", "stubborn", "text")


async def handler(incoming: Incoming) -> None:
    """Behaves as its endpoint is called."""
    match incoming.head.endpoint:
        case "echo":
            await incoming.reply(await incoming.receive() or b"")
        case "pour":
            while True:
                await incoming.send(await incoming.receive() or b"x" * 300)
        case "listen":
            while (message := await incoming.receive()) is not None:
                await incoming.send(message[:1])
        case "hang":
            await asyncio.Event().wait()
        case "raise":
            await incoming.receive()
            raise NotFound("fuzz", "on purpose " * 200)
        case "exit":
            raise SystemExit(1)
        case "cut":
            task = asyncio.ensure_future(incoming.send(b"y" * 3000))
            try:
                await turn(2)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await incoming.send(b"instead")
        case "stubborn":
            try:
                await asyncio.Event().wait()
            finally:
                await turn(3)
        case "text":
            await incoming.reply("text")  # type: ignore[arg-type]
        case _:
            return


class ServerMachine:
    """One connection and its caller."""

    def __init__(self, data: bytes) -> None:
        self._source = Source(data)
        self._server = Server(handler, limits=LIMITS)
        self._connection = ServerConnection(self._server)
        self._pipe = Pipe(self._connection)
        self._reader = Reader()
        self._books = Books(window=WINDOW_SIZE, max_frame=MAX_FRAME)
        self._given = Given()
        self._sent = Peer(self._books, self._given)
        self._batch = bytearray()
        self._next = 1
        self._goaway: int | None = None

    async def run(self) -> None:
        if self._source.below(8):
            self._batch += frame(HELLO, 0, 0, GREETING)
        steps = (
            self._request, self._request, self._data, self._data, self._window, self._cancel,
            self._any_frame, self._junk, self._deliver, self._deliver, self._read, self._turn,
            self._turn, self._ping, self._drain,
        )  # fmt: skip
        while self._source.more:
            await self._source.pick(steps)()
            self._check()
        await self._end()

    # -- what a caller may do --------------------------------------------------------------------

    async def _request(self) -> None:
        source = self._source
        stream = self._next if source.below(8) else source.below(12)
        self._next = max(self._next, stream + 2 | 1)
        header = {"service": "fuzz", "endpoint": source.pick(ENDPOINTS)}
        if not source.below(6):
            header["timeout_ms"] = source.pick((1, 0, 5000, 2**32, -1))  # type: ignore[assignment]
        encoded = json.dumps(header).encode() if source.below(8) else source.take(40)
        body = source.take(40) * source.pick((1, 1, 8, 30))
        self._batch += frame(
            REQUEST, source.below(16), stream, struct.pack(">H", len(encoded)) + encoded + body
        )

    async def _data(self) -> None:
        source = self._source
        stream = self._some_stream()
        body = source.take(40) * source.pick((1, 1, 8, 30))
        self._batch += frame(DATA, source.below(16), stream, body)

    async def _window(self) -> None:
        stream = self._some_stream()
        credit = self._source.pick((1, 0, 63, 64, 65, 500, 2000, 2**31 - 1, 2**32 - 1))
        self._batch += frame(WINDOW, 0, stream, struct.pack(">I", credit))

    async def _cancel(self) -> None:
        self._batch += frame(CANCEL, 0, self._some_stream())

    async def _ping(self) -> None:
        self._batch += frame(PING, self._source.below(16), 0, self._source.take(80))

    async def _any_frame(self) -> None:
        source = self._source
        kind, stream = source.below(9), source.below(12)
        payload = source.take(30)
        self._batch += frame(kind, source.below(256), stream, payload)

    async def _junk(self) -> None:
        self._batch += self._source.take(20)

    async def _deliver(self) -> None:
        data, size = bytes(self._batch), self._source.pick((10**6, 1, 7, 100))
        self._batch.clear()
        for start in range(0, len(data), size):
            self._sent.sends(data[start : start + size])
            self._pipe.deliver(data[start : start + size])
            self._check()

    async def _read(self) -> None:
        self._take(self._source.pick((None, 1, 50, 500)))

    async def _turn(self) -> None:
        await turn(self._source.below(4) + 1)

    async def _drain(self) -> None:
        if not self._source.below(8):
            self._server.draining = True
            self._connection.goaway()

    def _some_stream(self) -> int:
        """Mostly one of the last few."""
        back = self._source.below(6)
        return self._next - 2 * back if back < 5 and self._next > 2 * back else back

    # -- what must hold ----------------------------------------------------------------------------

    def _check(self) -> None:
        connection = self._connection
        assert 0 <= connection.buffered <= 2 * LIMITS.max_buffered
        assert connection.undecoded <= LIMITS.max_frame + LIMITS.max_header + 12
        assert len(connection.streams) <= LIMITS.max_streams
        assert self._server.in_flight == len(connection.streams)

    def _take(self, size: int | None = None) -> None:
        for sent in self._reader.feed(self._pipe.take(size)):
            if sent.kind == DATA:
                self._books.sent(sent, len(sent.payload))
            elif sent.kind == ERROR:
                assert sent.flags == END
                assert len(sent.payload) <= MAX_FRAME
                assert json.loads(sent.payload)["detail"]
                if sent.stream:
                    self._books.broke_off(sent.stream)
            elif sent.kind == WINDOW:
                self._given.gave(sent.stream, int.from_bytes(sent.payload, "big"))
            else:
                assert sent.kind in (HELLO, PING, GOAWAY), sent
            assert sent.kind in (DATA, ERROR) or not sent.flags & (END | BARE)

    async def _end(self) -> None:
        """The line breaks: nothing may be left."""
        await self._deliver()
        self._take()
        self._pipe.cut()
        for _ in range(60):
            await turn()
            if not self._server.in_flight and self._connection.is_lost:
                break
        connection, server = self._connection, self._server
        assert connection.is_lost
        assert not connection.streams
        assert not server.connections
        assert not server.leaving
        assert (connection.buffered, server.in_flight, len(connection.blocked)) == (0, 0, 0)
