"""The calling side of frames: one connection to one node, made by ``dialer.py``."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping

from micro_ray.context import AUTHORIZATION, DEFAULT_NAMESPACE
from micro_ray.errors import (
    BadGateway,
    BadRequest,
    Cancelled,
    MicroError,
    Timeout,
    TooLarge,
    TooManyRequests,
)
from micro_ray.network import Broken, Call, Credentials, Peer, Refused, Silent, Stream
from micro_ray.wire.channel import Channel
from micro_ray.wire.connection import Connection
from micro_ray.wire.identity import PeerCertificate, said
from micro_ray.wire.protocol import (
    BARE,
    CONTENT,
    COST,
    END,
    MAX_TIMEOUT_MS,
    MORE,
    Head,
    Hello,
    Kind,
    Limits,
    ProtocolError,
    decode_error,
    encode_frame,
    encode_head,
    encode_request,
    never_opened,
)

__all__ = ["ClientConnection", "WirePeer"]

_MAX_STREAM = 2**32 - 3
#: The flags that say what a frame of an answer is.
_SHAPE = END | MORE | BARE


class _Unary:
    """One call with one message each way: the answer resolves ``future`` from the parser."""

    __slots__ = ("deadline", "future", "parts")

    def __init__(self, future: asyncio.Future[bytes], deadline: float | None) -> None:
        self.future = future
        self.deadline = deadline
        self.parts: bytearray | None = None


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
        channel.local_done = True
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
        self._leaver: asyncio.TimerHandle | None = None

    def secured(self, peer: PeerCertificate) -> None:
        """No new call once the node's certificate has ended; with a new one it is dialled again.
        What is under way has one lifetime more."""
        self._leaver = self.loop.call_later(peer.left, self._expire, peer.life)

    def _expire(self, life: float) -> None:
        self._leaver = self.loop.call_later(life, self._overdue)
        self.going = True
        self._leave_if_idle()

    def _overdue(self) -> None:
        self.abort(ProtocolError("the node's certificate has ended long ago"))

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError) and not self.refusal:
            self.refusal = f"no connection to {self.address}: {said(exc)}"
        elif not (self.has_greeted or self.refusal) and self.address.startswith("tcp:"):
            # Loops close without TLS's own word when they refuse, so this is all there is to know.
            proved = self._transport is not None and self._transport.get_extra_info("ssl_object")
            why = "our certificate is not accepted" if proved else "it wants TLS and an identity"
            self.refusal = f"{self.address} closed before its HELLO: it is going away, or {why}"
        super().connection_lost(exc)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.say_hello()

    def greeted(self, hello: Hello) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def flush(self) -> None:
        super().flush()
        if not self.is_lost and not self._shut:
            self.flushed = self.next

    def abort(self, error: ProtocolError) -> None:
        self.refusal = f"the connection to {self.address} was given up ({error})"
        super().abort(error)

    def shut(self) -> None:
        self.going = True
        super().shut()

    def kill(self) -> None:
        self.going = True
        super().kill()

    def open_stream(self, item: _Unary | _Outgoing) -> int:
        stream = self.next
        self.next = stream + 2
        self.streams[stream] = item
        if stream >= _MAX_STREAM:
            self.going = True  # ids are used up; the pool makes another connection
        return stream

    async def room(self, deadline: float | None) -> None:
        """Wait until the transport takes more. Raises Refused when the connection takes no more
        calls, Silent at the deadline."""
        while self.paused and not self.going:
            waiter = self.loop.create_future()
            self.blocked.add(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                raise Silent("wire", f"{self.address} took nothing before the deadline") from None
            finally:
                self.blocked.discard(waiter)
        if self.going:
            raise Refused("wire", f"the connection to {self.address} is closing", 0.0)

    def forget(self, stream: int) -> None:
        """Give a call up and tell the server, if it has not ended."""
        if self._take(stream) is not None:
            if not self.is_lost:
                self.write(encode_frame(Kind.CANCEL, 0, stream))
            self._leave_if_idle()

    def give_up(self, channel: Channel, error: MicroError) -> None:
        self.forget(channel.stream)
        channel.fail(error)

    def _take(self, stream: int) -> _Unary | _Outgoing | None:
        """A call that is under way, out of the list."""
        item = self.streams.pop(stream, None)
        if type(item) is _Unary and item.parts is not None:
            self.buffered -= len(item.parts)
        return item

    def on_data(self, flags: int, stream: int, payload: bytes) -> None:
        item = self.streams.get(stream)
        if item is None:
            self._ended(stream, "DATA")
            return
        if type(item) is _Unary:
            self._answer(item, flags, stream, payload)
            return
        assert isinstance(item, _Outgoing)
        try:
            item.feed(flags, payload)
        except MicroError as error:
            self.give_up(item, error)
            return
        if flags & END:
            # The answer's end is the call's end: what the caller still sends nobody reads.
            del self.streams[stream]
            item.local_done = True
            item.wake_sender()
            self._leave_if_idle()

    def _answer(self, item: _Unary, flags: int, stream: int, payload: bytes) -> None:
        if flags & _SHAPE == END:
            if item.parts is None:
                del self.streams[stream]
            else:
                self._take(stream)
                item.parts += payload
                if len(item.parts) > self.limits.max_message:
                    _fail(item, self._too_large())
                payload = bytes(item.parts)
            if not item.future.done():
                item.future.set_result(payload)
            if self.going:
                self._leave_if_idle()
        elif flags & BARE and (item.parts is not None or payload or flags & MORE):
            raise ProtocolError(f"stream {stream}: a BARE frame with or within a message")
        elif flags & MORE and (flags & END or not payload):
            raise ProtocolError(f"stream {stream}: MORE on the last frame or an empty one")
        elif flags & END:
            self._take(stream)
            _fail(item, BadGateway("wire", f"{self.address} ended the call without an answer"))
            self._leave_if_idle()
        elif flags & MORE:
            self._gather(item, stream, payload)
        else:
            self.forget(stream)
            _fail(item, _is_stream())

    def _gather(self, item: _Unary, stream: int, payload: bytes) -> None:
        """A part of a long answer. Who called takes it whole, so the next may come at once."""
        limits, size = self.limits, len(payload)
        if item.parts is None:
            item.parts = bytearray()
        item.parts += payload
        self.buffered += size
        error: MicroError | None = None
        if len(item.parts) > limits.max_message:
            error = self._too_large()
        elif self.buffered > limits.max_buffered:
            error = TooManyRequests(
                "wire", f"over {limits.max_buffered} bytes unread on this connection", 0.1
            )
        if error is not None:
            self.forget(stream)
            _fail(item, error)
        else:
            credit = (size + COST).to_bytes(4, "big")
            self.write(encode_frame(Kind.WINDOW, 0, stream, credit))

    def _too_large(self) -> TooLarge:
        return TooLarge("wire", f"answer over {self.limits.max_message} bytes")

    def on_error(self, stream: int, payload: bytes) -> None:
        error = decode_error(payload)
        if stream == 0:
            self.refusal = f"{self.address} closed the connection: {error.detail}"
            self.shut()
            return
        item = self._take(stream)
        if item is None:
            self._ended(stream, "ERROR")
            return
        _fail(item, error)
        self._leave_if_idle()

    def on_window(self, stream: int, credit: int) -> None:
        item = self.streams.get(stream)
        if item is None:
            self._ended(stream, "WINDOW")
        elif isinstance(item, _Outgoing):
            item.grant(credit)

    def _ended(self, stream: int, what: str) -> None:
        """Pass over a frame for a call that has ended or was given up. Raises ProtocolError for a
        stream that was never opened."""
        if stream >= self.next or not stream & 1:
            raise never_opened(what, stream)

    def on_goaway(self, last: int) -> None:
        self.going = True
        for stream in [s for s in self.streams if s > last]:
            # The server answers these with a refusal; it is the same to say so at once.
            item = self._take(stream)
            assert item is not None
            _fail(item, Refused("wire", "the node is going away", 0.0))
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self.going and not self.streams:
            self.shut()

    def deadline_of(self, item: _Unary | _Outgoing) -> float | None:
        return item.deadline

    def on_deadline(self, stream: int) -> None:
        item = self.streams.get(stream)
        if item is not None:
            self.forget(stream)
            _fail(item, Silent("wire", f"no answer from {self.address} before the deadline"))

    def on_lost(self) -> None:
        self.going = True
        if self._leaver is not None:
            self._leaver.cancel()
        why = self.refusal or f"the connection to {self.address} broke"
        for stream in list(self.streams):
            item = self._take(stream)
            assert item is not None
            if stream >= self.flushed:
                _fail(item, Refused("wire", f"{why} before the call was sent", 0.0))
            else:
                _fail(item, Broken("wire", f"{why} while the call was under way"))
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
    """A connection as callers see it, to a node of a namespace."""

    def __init__(
        self,
        connection: ClientConnection,
        namespace: str = DEFAULT_NAMESPACE,
        credentials: Credentials | None = None,
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._credentials = credentials

    def _head(self, call: Call) -> tuple[Head, float | None]:
        credentials = self._credentials
        if credentials is None or AUTHORIZATION in call.metadata:
            return _head(call, call.metadata)
        along = credentials(self._namespace, call.service)
        return _head(call, {**call.metadata, **along})

    @property
    def closed(self) -> bool:  # type: ignore[override]
        connection = self._connection
        return connection.going or connection.is_lost

    @property
    def in_flight(self) -> int:  # type: ignore[override]
        return len(self._connection.streams)

    async def call(self, call: Call, body: bytes) -> bytes:
        connection = self._connection
        head, deadline = self._head(call)
        header = encode_head(head, connection.peer_header)
        if connection.paused or connection.going:
            await connection.room(deadline)
        size = len(body)
        if size > connection.peer_frame or size + COST > connection.peer_window:
            return await self._call_large(header, deadline, body)
        future: asyncio.Future[bytes] = connection.loop.create_future()
        stream = connection.open_stream(_Unary(future, deadline))
        connection.write(encode_request(stream, header, body, END))
        if deadline is not None:
            connection.watch_deadline(deadline)
        try:
            return await future
        except asyncio.CancelledError:
            connection.forget(stream)
            raise

    async def _call_large(self, header: bytes, deadline: float | None, body: bytes) -> bytes:
        """A body that does not fit one frame or the credit a stream starts with."""
        connection = self._connection
        if len(body) > connection.peer_message:
            raise TooLarge(
                "wire", f"message of {len(body)} bytes; {connection.peer_message} allowed"
            )
        channel = self._start(header, deadline)
        async with ClientStream(channel) as stream:
            try:
                await stream.send(body)
                await stream.end()
            except Cancelled:
                if not channel.remote_done:
                    raise
                # Answered before all of it had been sent.
            answer = await stream.receive()
            if answer is None:
                raise BadGateway("wire", f"{connection.address} ended the call without an answer")
            if channel.inbox or not channel.remote_done:
                raise _is_stream()
            return answer

    async def open(self, call: Call) -> Stream:
        connection = self._connection
        head, deadline = self._head(call)
        header = encode_head(head, connection.peer_header)
        if connection.paused or connection.going:
            await connection.room(deadline)
        return ClientStream(self._start(header, deadline))

    def _start(self, header: bytes, deadline: float | None) -> _Outgoing:
        connection = self._connection
        channel = _Outgoing(connection, 0, deadline)
        channel.stream = connection.open_stream(channel)
        connection.write(encode_request(channel.stream, header, b"", BARE))
        if deadline is not None:
            connection.watch_deadline(deadline)
        return channel

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


def _is_stream() -> BadRequest:
    return BadRequest("wire", "the endpoint answers with a stream; open it as one")


def _head(call: Call, metadata: Mapping[str, str]) -> tuple[Head, float | None]:
    timeout = call.timeout
    if type(metadata) is not dict:
        metadata = dict(metadata)
    content = CONTENT if call.content == CONTENT else call.content
    if timeout is None or timeout * 1000 >= MAX_TIMEOUT_MS:
        return Head(call.service, call.endpoint, 0, content, metadata), None
    if not timeout > 0:
        raise Timeout("wire", "the deadline had passed before the call was sent")
    head = Head(call.service, call.endpoint, int(timeout * 1000) + 1, content, metadata)
    return head, time.monotonic() + timeout
