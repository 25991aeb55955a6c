"""A calling connection under a server that answers whatever it likes."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Coroutine
from typing import Any

from micro_ray.network import Call, Stream
from micro_ray.wire.client import ClientConnection, WirePeer
from micro_ray.wire.protocol import Limits
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
from tests.fuzz.server import GREETING, MAX_FRAME, WINDOW_SIZE
from tests.fuzz.source import Source

LIMITS = Limits(max_frame=1024, max_message=2048, window=1024, max_buffered=2048)
ERRORS = (
    b'{"id":"x","code":404,"detail":"no","status":"Not Found"}', b'{"code":503,"refused":true}',
    b"{}", b"\xff", b'{"code":1e99}',
)  # fmt: skip


class ClientMachine:
    """One connection, the program that calls over it, and its server."""

    def __init__(self, data: bytes) -> None:
        self._source = Source(data)
        self._connection = ClientConnection(LIMITS, "unix:/fuzz")
        self._pipe = Pipe(self._connection)
        self._peer = WirePeer(self._connection)
        self._reader = Reader()
        self._books = Books(window=WINDOW_SIZE, max_frame=MAX_FRAME)
        self._given = Given()
        self._sent = Peer(self._books, self._given)
        self._batch = bytearray()
        self._tasks: list[asyncio.Task[Any]] = []
        self._streams: list[Stream] = []

    async def run(self) -> None:
        if self._source.below(8):
            self._batch += frame(HELLO, 0, 0, GREETING)
        steps = (
            self._call, self._call, self._open, self._send, self._send, self._receive, self._stop,
            self._answer, self._answer, self._answer, self._error, self._window, self._any_frame,
            self._junk, self._deliver, self._deliver, self._read, self._turn, self._turn,
        )  # fmt: skip
        while self._source.more:
            await self._source.pick(steps)()
            self._check()
        await self._end()

    # -- what a program may do -------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        if len(self._tasks) < 40:
            self._tasks.append(asyncio.ensure_future(work))
        else:
            work.close()

    def _head(self) -> Call:
        timeout = self._source.pick((None, None, 0.001, 5.0, 0.0))
        return Call(service="fuzz", endpoint="Fuzz.Call", timeout=timeout)

    def _body(self) -> bytes:
        return self._source.take(40) * self._source.pick((1, 1, 10, 50))

    async def _call(self) -> None:
        self._start(self._peer.call(self._head(), self._body()))

    async def _open(self) -> None:
        async def open_() -> None:
            self._streams.append(await self._peer.open(self._head()))

        self._start(open_())

    async def _send(self) -> None:
        if self._streams:
            stream = self._source.pick(self._streams)
            body = self._body()
            self._start(stream.send(body) if self._source.below(5) else stream.end())

    async def _receive(self) -> None:
        if self._streams:
            self._start(self._source.pick(self._streams).receive())

    async def _stop(self) -> None:
        """A task is cancelled, or a stream given up."""
        if self._source.below(2) and self._streams:
            self._source.pick(self._streams).cancel()
        elif self._tasks:
            self._source.pick(self._tasks).cancel()

    # -- what a server may do ----------------------------------------------------------------------

    async def _answer(self) -> None:
        source = self._source
        flags = source.pick((END, END, 0, 2, END | BARE, source.below(16)))
        body = source.take(40) * source.pick((1, 1, 8, 30))
        stream = self._some_stream()
        self._batch += frame(DATA, flags, stream, body)

    async def _error(self) -> None:
        stream = self._some_stream() if self._source.below(6) else 0
        self._batch += frame(ERROR, self._source.below(16), stream, self._source.pick(ERRORS))

    async def _window(self) -> None:
        stream = self._some_stream()
        credit = self._source.pick((1, 0, 63, 64, 65, 500, 2000, 2**31 - 1, 2**32 - 1))
        self._batch += frame(WINDOW, 0, stream, struct.pack(">I", credit))

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

    def _some_stream(self) -> int:
        back = self._source.below(8)
        return max(self._connection.next - 2 * back, 1) if back < 7 else back

    # -- what must hold ----------------------------------------------------------------------------

    def _check(self) -> None:
        connection = self._connection
        assert 0 <= connection.buffered <= 2 * LIMITS.max_buffered
        assert connection.undecoded <= LIMITS.max_frame + LIMITS.max_header + 12

    def _take(self, size: int | None = None) -> None:
        for sent in self._reader.feed(self._pipe.take(size)):
            if sent.kind == REQUEST:
                length = int.from_bytes(sent.payload[:2], "big")
                assert json.loads(sent.payload[2 : 2 + length])["service"] == "fuzz"
                self._books.opened(sent.stream)
                self._books.sent(sent, len(sent.payload) - 2 - length)
                if sent.flags & BARE:
                    assert len(sent.payload) == 2 + length
            elif sent.kind == DATA:
                self._books.sent(sent, len(sent.payload))
            elif sent.kind == WINDOW:
                self._given.gave(sent.stream, int.from_bytes(sent.payload, "big"))
            elif sent.kind == ERROR:
                assert sent.stream == 0
            else:
                assert sent.kind in (HELLO, CANCEL, PING), sent
                assert sent.kind != GOAWAY

    async def _end(self) -> None:
        """The line breaks: every call ends, nothing may be left."""
        await self._deliver()
        self._take()
        self._pipe.cut()
        await turn(4)
        for stream in self._streams:
            stream.cancel()
        done, pending = await asyncio.wait(self._tasks, timeout=1) if self._tasks else ((), ())
        assert not pending, pending
        for task in done:
            if not task.cancelled():
                task.exception()
        connection = self._connection
        assert connection.is_lost
        assert not connection.streams
        assert (connection.buffered, len(connection.blocked)) == (0, 0)
