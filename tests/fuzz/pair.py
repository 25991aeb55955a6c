"""Our caller and our server with each other: programs and handlers do what they like, bytes come in
any pieces at any time, and neither side ever finds a fault with the other."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from micro_ray.errors import MicroError
from micro_ray.network import Call, Stream
from micro_ray.wire.client import ClientConnection, WirePeer
from micro_ray.wire.protocol import Limits, ProtocolError
from micro_ray.wire.server import Server, ServerConnection
from tests.fuzz.pipe import Pipe, turn
from tests.fuzz.server import ENDPOINTS, handler
from tests.fuzz.source import Source

#: Limits of the two sides, so that each may be the smaller one.
SMALL = Limits(max_frame=1024, max_message=2048, max_header=1024, window=1024, max_streams=4)
LARGE = Limits(max_frame=4096, max_message=8192, window=3000, max_streams=100)


class PairMachine:
    """Two connections and the line between them."""

    def __init__(self, data: bytes) -> None:
        self._source = Source(data)
        ours, theirs = self._source.pick(((SMALL, LARGE), (LARGE, SMALL), (SMALL, SMALL)))
        self._server = Server(handler, limits=theirs)
        self._faults: list[str] = []
        self._client = ClientConnection(ours, "unix:/fuzz")
        self._serving = ServerConnection(self._server)
        for side in (self._client, self._serving):
            side.abort = self._fault  # type: ignore[method-assign]
        self._up = Pipe(self._client)
        self._down = Pipe(self._serving)
        self._peer = WirePeer(self._client)
        self._tasks: list[asyncio.Task[Any]] = []
        self._streams: list[Stream] = []

    def _fault(self, error: ProtocolError) -> None:
        self._faults.append(str(error))

    async def run(self) -> None:
        await turn()
        self._move_all()
        await turn()
        self._move_all()
        assert self._client.ready.done()
        steps = (
            self._call, self._call, self._open, self._send, self._send, self._send, self._receive,
            self._receive, self._stop, self._move_up, self._move_down, self._move_up,
            self._move_down, self._turn, self._turn, self._drain,
        )  # fmt: skip
        while self._source.more:
            await self._source.pick(steps)()
            assert not self._faults, self._faults
        await self._end()

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        if len(self._tasks) < 40:
            self._tasks.append(asyncio.ensure_future(work))
        else:
            work.close()

    def _head(self, *, echo: bool = False) -> Call:
        endpoint = "echo" if echo else self._source.pick(ENDPOINTS)
        timeout = self._source.pick((None, None, None, 0.001, 5.0))
        return Call(service="fuzz", endpoint=endpoint, timeout=timeout)

    def _body(self) -> bytes:
        return self._source.take(40) * self._source.pick((1, 1, 10, 40))

    async def _call(self) -> None:
        if self._source.below(2):
            self._start(self._peer.call(self._head(), self._body()))
        else:
            self._start(self._echo(self._head(echo=True), self._body()))

    async def _echo(self, head: Call, body: bytes) -> None:
        answer = await self._peer.call(head, body)
        if answer != body:
            self._faults.append(f"{body!r} came back as {answer!r}")

    async def _open(self) -> None:
        async def open_(head: Call) -> None:
            self._streams.append(await self._peer.open(head))

        self._start(open_(self._head()))

    async def _send(self) -> None:
        if self._streams:
            stream = self._source.pick(self._streams)
            self._start(stream.send(self._body()) if self._source.below(5) else stream.end())

    async def _receive(self) -> None:
        if self._streams:
            self._start(self._source.pick(self._streams).receive())

    async def _stop(self) -> None:
        if self._source.below(2) and self._streams:
            self._source.pick(self._streams).cancel()
        elif self._tasks:
            self._source.pick(self._tasks).cancel()

    async def _drain(self) -> None:
        if not self._source.below(4):
            self._server.draining = True
            self._serving.goaway()

    # -- the line ----------------------------------------------------------------------------------

    async def _move_up(self) -> None:
        self._down.deliver(self._up.take(self._source.pick((None, 1, 30, 300))))

    async def _move_down(self) -> None:
        self._up.deliver(self._down.take(self._source.pick((None, 1, 30, 300))))

    def _move_all(self) -> None:
        self._down.deliver(self._up.take())
        self._up.deliver(self._down.take())
        if self._up.lost:
            self._down.cut()
        if self._down.lost:
            self._up.cut()

    async def _turn(self) -> None:
        await turn(self._source.below(4) + 1)

    async def _end(self) -> None:
        """Streams are given up, the rest ends in good order."""
        for stream in self._streams:
            stream.cancel()
        for task in self._tasks:
            task.cancel()
        for _ in range(100):
            await turn()
            self._move_all()
            if self._quiet():
                break
        assert not self._faults, self._faults
        assert self._quiet()
        for side in (self._client, self._serving):
            assert not side.streams
            assert (side.buffered, len(side.blocked)) == (0, 0)
        assert not self._server.leaving
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if outcome is not None and not isinstance(
                outcome, bytes | MicroError | asyncio.CancelledError
            ):
                raise outcome
        self._up.cut()
        self._down.cut()
        await turn(2)
        # A caller that leaves when its last call has ended does not read to the end.
        assert (self._client.undecoded, self._serving.undecoded) == (0, 0)

    def _quiet(self) -> bool:
        unsent = self._client.unsent + self._serving.unsent
        return not unsent and not self._server.in_flight and all(t.done() for t in self._tasks)
