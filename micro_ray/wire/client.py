"""The calling side of frames."""

from __future__ import annotations

import asyncio
import time

from micro_ray.errors import Cancelled, InternalError, MicroError, Timeout, TooLarge
from micro_ray.network import Broken, Call, Dialer, Peer, Refused, Silent, Stream
from micro_ray.wire.address import parse
from micro_ray.wire.connection import Channel, Connection
from micro_ray.wire.protocol import (
    BARE,
    END,
    MORE,
    Head,
    Hello,
    Kind,
    Limits,
    ProtocolError,
    decode_error,
    encode_frame,
    encode_request,
)

__all__ = ["WireDialer"]

#: Room that a REQUEST's header may take in a frame beside the body.
_HEADER_ROOM = 4096
_MAX_STREAM = 2**32 - 3


class _Unary:
    """One call with one message each way: the answer resolves ``future`` from the parser."""

    __slots__ = ("deadline", "future", "parts", "size")

    def __init__(self, future: asyncio.Future[bytes], deadline: float | None) -> None:
        self.future = future
        self.deadline = deadline
        self.parts: list[bytes] | None = None
        self.size = 0


class _Outgoing(Channel):
    """A streaming call as the caller sees it."""

    __slots__ = ()

    connection: ClientConnection


class ClientStream(Stream):
    """The public face of an outgoing stream."""

    def __init__(self, channel: _Outgoing) -> None:
        self._channel = channel

    async def send(self, message: bytes) -> None:
        await self._channel.send(message)

    async def end(self) -> None:
        await self._channel.end()

    async def receive(self) -> bytes | None:
        return await self._channel.receive()

    def cancel(self) -> None:
        channel = self._channel
        channel.connection.forget(channel.stream)
        if not channel.remote_done:
            channel.fail(Cancelled("wire", "the call was given up"))
        channel.discard()


class ClientConnection(Connection["_Unary | _Outgoing"]):
    def __init__(self, limits: Limits, address: str) -> None:
        super().__init__(limits)
        self.address = address
        self.ready: asyncio.Future[None] = self.loop.create_future()
        self.going = False
        self.next = 1
        self.flushed = 0
        self.refusal: str = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.say_hello()

    def greeted(self, hello: Hello) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def flush(self) -> None:
        super().flush()
        if not self.is_lost:
            self.flushed = self.next

    def open_stream(self, item: _Unary | _Outgoing) -> int:
        stream = self.next
        self.next = stream + 2
        self.streams[stream] = item
        if stream >= _MAX_STREAM:
            self.going = True  # ids are used up; the pool makes another connection
        return stream

    def forget(self, stream: int) -> None:
        """Give a call up and tell the server, if it has not ended."""
        if self.streams.pop(stream, None) is not None:
            if not self.is_lost:
                self.write(encode_frame(Kind.CANCEL, 0, stream))
            self._leave_if_idle()

    def on_data(self, flags: int, stream: int, payload: bytes) -> None:
        item = self.streams.get(stream)
        if item is None:
            if stream >= self.next:
                raise ProtocolError(f"DATA on stream {stream}, which was never opened")
            return  # given up before the answer came
        if type(item) is _Unary:
            self._answer(item, flags, stream, payload)
            return
        assert isinstance(item, _Outgoing)
        try:
            item.feed(flags, payload)
        except TooLarge as error:
            self.forget(stream)
            item.fail(error)
            return
        if flags & END:
            # The answer's end is the call's end: what the caller still sends nobody reads.
            del self.streams[stream]
            item.local_done = True
            item.wake()
            self._leave_if_idle()

    def _answer(self, item: _Unary, flags: int, stream: int, payload: bytes) -> None:
        if flags & MORE:
            if item.parts is None:
                item.parts = []
            item.parts.append(payload)
            item.size += len(payload)
            if item.size > self.limits.max_message:
                self.forget(stream)
                _fail(item, TooLarge("wire", f"answer over {self.limits.max_message} bytes"))
                return
            self.write(encode_frame(Kind.WINDOW, 0, stream, len(payload).to_bytes(4, "big")))
            return
        if not flags & END:
            self.forget(stream)
            _fail(item, InternalError("wire", "a stream came where one answer was expected"))
            return
        del self.streams[stream]
        if item.parts is not None:
            item.parts.append(payload)
            payload = b"".join(item.parts)
        if not item.future.done():
            item.future.set_result(payload)
        if self.going:
            self._leave_if_idle()

    def on_error(self, stream: int, payload: bytes) -> None:
        error = decode_error(payload)
        if stream == 0:
            self.refusal = error.detail
            self.shut()
            return
        item = self.streams.pop(stream, None)
        if item is not None:
            _fail(item, error)
            self._leave_if_idle()

    def on_window(self, stream: int, credit: int) -> None:
        item = self.streams.get(stream)
        if isinstance(item, _Outgoing):
            item.grant(credit)

    def on_goaway(self, last: int) -> None:
        self.going = True
        for stream in [s for s in self.streams if s > last]:
            # The server answers these with a refusal; it is the same to say so at once.
            _fail(self.streams.pop(stream), Refused("wire", "the node is going away", 0.0))
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self.going and not self.streams:
            self.shut()

    def deadline_of(self, item: _Unary | _Outgoing) -> float | None:
        return item.deadline

    def on_deadline(self, stream: int) -> None:
        item = self.streams[stream]
        self.forget(stream)
        _fail(item, Silent("wire", f"no answer from {self.address} before the deadline"))

    def on_lost(self) -> None:
        self.going = True
        why = self.refusal or f"the connection to {self.address} broke"
        for stream, item in self.streams.items():
            if stream >= self.flushed:
                _fail(item, Refused("wire", f"{why} before the call was sent", 0.0))
            else:
                _fail(item, Broken("wire", f"{why} while the call was under way"))
        self.streams.clear()
        if not self.ready.done():
            self.ready.set_exception(Refused("wire", why))
            self.ready.exception()  # nobody may be waiting any more


def _fail(item: _Unary | _Outgoing, error: MicroError) -> None:
    if isinstance(item, _Unary):
        if not item.future.done():
            item.future.set_exception(error)
    else:
        item.fail(error)


class WirePeer(Peer):
    """A connection as callers see it."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @property
    def closed(self) -> bool:  # type: ignore[override]
        connection = self._connection
        return connection.going or connection.is_lost

    @property
    def in_flight(self) -> int:  # type: ignore[override]
        return len(self._connection.streams)

    async def call(self, call: Call, body: bytes) -> bytes:
        connection = self._connection
        if connection.going:
            raise Refused("wire", f"the connection to {connection.address} is closing", 0.0)
        if connection.paused is not None:
            await connection.paused
        head, deadline = _head(call)
        future: asyncio.Future[bytes] = connection.loop.create_future()
        size = len(body)
        if size + _HEADER_ROOM > connection.peer_frame or size > connection.peer_window:
            return await self._call_large(head, deadline, body)
        stream = connection.open_stream(_Unary(future, deadline))
        connection.write(encode_request(stream, head, body, END))
        if deadline is not None:
            connection.watch_deadline(deadline)
        try:
            return await future
        except asyncio.CancelledError:
            connection.forget(stream)
            raise

    async def _call_large(self, head: Head, deadline: float | None, body: bytes) -> bytes:
        """A body that does not fit one frame or the credit a stream starts with."""
        stream = await self._open(head, deadline)
        async with stream:
            await stream.send(body)
            await stream.end()
            answer = await stream.receive()
            if answer is None:
                raise InternalError("wire", "the service ended the call without an answer")
            return answer

    async def open(self, call: Call) -> Stream:
        head, deadline = _head(call)
        return await self._open(head, deadline)

    async def _open(self, head: Head, deadline: float | None) -> Stream:
        connection = self._connection
        if connection.going:
            raise Refused("wire", f"the connection to {connection.address} is closing", 0.0)
        channel = _Outgoing(connection, 0, deadline)
        channel.stream = connection.open_stream(channel)
        connection.write(encode_request(channel.stream, head, b"", BARE))
        if deadline is not None:
            connection.watch_deadline(deadline)
        return ClientStream(channel)

    async def wait_closed(self) -> None:
        await asyncio.shield(self._connection.lost)

    async def close(self) -> None:
        connection = self._connection
        connection.going = True
        for stream, item in list(connection.streams.items()):
            connection.forget(stream)
            _fail(item, Cancelled("wire", "the connection was closed here"))
        connection.shut()
        await self.wait_closed()


def _head(call: Call) -> tuple[Head, float | None]:
    timeout = call.timeout
    metadata = call.metadata
    if type(metadata) is not dict:
        metadata = dict(metadata)
    if timeout is None:
        return Head(call.service, call.endpoint, 0, call.content, metadata), None
    if timeout <= 0:
        raise Timeout("wire", "the deadline had passed before the call was sent")
    head = Head(call.service, call.endpoint, int(timeout * 1000) + 1, call.content, metadata)
    return head, time.monotonic() + timeout


class WireDialer(Dialer):
    """Dials ``unix:`` and ``tcp:`` addresses."""

    def __init__(self, *, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()

    async def dial(self, address: str, *, timeout: float = 5.0) -> Peer:
        where = parse(address)
        loop = asyncio.get_running_loop()
        connection = None

        def make() -> ClientConnection:
            nonlocal connection
            connection = ClientConnection(self._limits, address)
            return connection

        try:
            async with asyncio.timeout(timeout):
                if where.path:
                    await loop.create_unix_connection(make, where.path)
                else:
                    await loop.create_connection(make, where.host, where.port)
                assert connection is not None
                await connection.ready
        except (OSError, TimeoutError) as error:
            if connection is not None:
                connection.kill()
            why = f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else error
            raise Refused("wire", f"cannot reach {address}: {why}") from None
        except BaseException:
            if connection is not None:
                connection.kill()
            raise
        return WirePeer(connection)
