"""What both sides of a connection share: frames in and out, streams with credit, keep-alive.

Writes of one turn of the loop leave in one system call. A sender waits for the stream's credit and
for the transport; credit is given back when the application has taken a message, so a slow reader
holds back its own senders and nobody's memory grows (docs/wire.md, "Flow control").
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any, Generic, TypeVar, cast

from micro_ray.errors import Cancelled, InternalError, MicroError, TooLarge
from micro_ray.wire.protocol import (
    ACK,
    BARE,
    END,
    HEAD_SIZE,
    MORE,
    Decoder,
    Frame,
    Hello,
    Kind,
    Limits,
    ProtocolError,
    decode_hello,
    encode_error,
    encode_frame,
    encode_hello,
)

__all__ = ["Channel", "Connection"]

log = logging.getLogger(__name__)

#: Largest payload of a frame before the handshake is done.
HANDSHAKE_FRAME = 4096
_DATA, _CANCEL, _WINDOW, _PING, _GOAWAY = (
    int(Kind.DATA),
    int(Kind.CANCEL),
    int(Kind.WINDOW),
    int(Kind.PING),
    int(Kind.GOAWAY),
)


class Channel:
    """One stream as one side sees it: messages in both directions."""

    __slots__ = (
        "connection",
        "credit",
        "credit_waiter",
        "deadline",
        "deferred",
        "error",
        "held",
        "inbox",
        "local_done",
        "owed",
        "part_size",
        "parts",
        "remote_done",
        "sending",
        "stream",
        "waiter",
    )

    def __init__(self, connection: Connection[Any], stream: int, deadline: float | None) -> None:
        self.connection = connection
        self.stream = stream
        self.deadline = deadline
        # Each message with the bytes of credit that are due when it is taken.
        self.inbox: deque[tuple[bytes, int]] = deque()
        self.parts: list[bytes] | None = None
        self.part_size = 0
        self.waiter: asyncio.Future[None] | None = None
        self.error: MicroError | None = None
        self.remote_done = False
        self.local_done = False
        self.credit = connection.peer_window
        self.credit_waiter: asyncio.Future[None] | None = None
        self.held = 0
        self.owed = 0
        self.deferred = 0
        self.sending: asyncio.Lock | None = None

    # -- incoming ----------------------------------------------------------------------------

    def feed(self, flags: int, payload: bytes) -> None:
        """Take a DATA frame (or the message part of a REQUEST). Raises TooLarge for a message
        over the limit, ProtocolError when the peer sends beyond its credit."""
        size = len(payload)
        connection = self.connection
        self.held += size
        if self.held > connection.limits.window:
            raise ProtocolError(f"stream {self.stream}: sent beyond its credit")
        connection.buffered += size
        if flags & MORE or self.parts is not None:
            self._assemble(payload)
        if flags & MORE:
            # The rest of a message must be able to come, but not while others wait to be taken.
            if self.inbox:
                self.deferred += size
            else:
                self._give(size)
            return
        if not flags & BARE:
            if self.parts is not None:
                payload = b"".join(self.parts)
                self.parts, self.part_size = None, 0
            self.inbox.append((payload, size))
        if flags & END:
            self.remote_done = True
        self.wake()

    def _assemble(self, payload: bytes) -> None:
        if self.parts is None:
            self.parts = []
        self.parts.append(payload)
        self.part_size += len(payload)
        limit = self.connection.limits.max_message
        if self.part_size > limit:
            self.connection.buffered -= self.part_size
            self.parts, self.part_size = None, 0
            raise TooLarge("wire", f"message over {limit} bytes")

    def _give(self, size: int) -> None:
        """Give credit back for ``size`` bytes."""
        self.held -= size
        if self.remote_done or self.error is not None:
            return
        self.owed += size
        if self.owed * 2 >= self.connection.limits.window:
            self.connection.write(
                encode_frame(_WINDOW, 0, self.stream, self.owed.to_bytes(4, "big"))
            )
            self.owed = 0

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def receive(self) -> bytes | None:
        """The next message; None at the end. Messages that came before an error come first."""
        while not self.inbox:
            if self.error is not None:
                raise self.error
            if self.remote_done:
                return None
            if self.waiter is not None:
                raise InternalError("wire", "two tasks receive from one stream")
            self.waiter = self.connection.loop.create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        message, size = self.inbox.popleft()
        self.connection.buffered -= len(message)
        if not self.inbox:
            size, self.deferred = size + self.deferred, 0
        self._give(size)
        return message

    # -- outgoing ----------------------------------------------------------------------------

    async def send(self, message: bytes) -> None:
        await self._send(message, 0)

    async def _send(self, message: bytes, flags: int) -> None:
        connection = self.connection
        size = len(message)
        if size <= self.credit and size <= connection.peer_frame and self.sending is None:
            self.check()
            if connection.paused is None:
                self.credit -= size
                if flags & END:
                    self.local_done = True
                connection.write(encode_frame(_DATA, flags, self.stream, message))
                return
        if size > connection.peer_message:
            raise TooLarge("wire", f"message of {size} bytes; {connection.peer_message} allowed")
        if self.sending is None:
            self.sending = asyncio.Lock()
        async with self.sending:
            await self._send_parts(message, flags)

    async def _send_parts(self, message: bytes, flags: int) -> None:
        connection = self.connection
        view = memoryview(message)
        while True:
            while not self.credit and view.nbytes:
                self.check()
                self.credit_waiter = connection.loop.create_future()
                await self.credit_waiter
            if connection.paused is not None:
                await connection.paused
            self.check()
            size = min(view.nbytes, self.credit, connection.peer_frame)
            self.credit -= size
            last = size == view.nbytes
            if last and flags & END:
                self.local_done = True
            frame = encode_frame(_DATA, flags if last else MORE, self.stream, bytes(view[:size]))
            connection.write(frame)
            if last:
                return
            view = view[size:]

    def check(self) -> None:
        """Raise what a sender must know."""
        if self.error is not None:
            raise self.error
        if self.local_done:
            raise Cancelled("wire", "this side of the stream has ended")

    async def end(self) -> None:
        if not self.local_done and self.error is None:
            if self.sending is not None:
                async with self.sending:
                    pass
            self.local_done = True
            self.connection.write(encode_frame(_DATA, END | BARE, self.stream))

    def grant(self, credit: int) -> None:
        self.credit += credit
        if self.credit > 2**31:
            raise ProtocolError(f"stream {self.stream}: credit beyond 2^31")
        self._wake_sender()

    def _wake_sender(self) -> None:
        waiter = self.credit_waiter
        if waiter is not None:
            self.credit_waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, error: MicroError) -> None:
        """End both directions; receivers get what came before, then the error."""
        if self.error is None:
            self.error = error
        self.wake()
        self._wake_sender()

    def discard(self) -> None:
        """Forget what was not received: nobody will take it."""
        for message, _ in self.inbox:
            self.connection.buffered -= len(message)
        self.inbox.clear()
        self.connection.buffered -= self.part_size
        self.parts, self.part_size = None, 0


C = TypeVar("C")


class Connection(asyncio.Protocol, Generic[C]):
    """One connection; subclassed by the two sides. ``C`` is what a stream is to that side."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.streams: dict[int, C] = {}
        self.buffered = 0
        self.paused: asyncio.Future[None] | None = None
        self.peer_frame = limits.max_frame
        self.peer_message = limits.max_message
        self.peer_window = limits.window
        self.lost: asyncio.Future[None] = self.loop.create_future()
        self.is_lost = False
        self._decoder = Decoder(HANDSHAKE_FRAME)
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._heard = True
        self._silent = 0
        self._greeted = False
        self._sweep_at = float("inf")
        self._sweeper: asyncio.TimerHandle | None = None
        self._keeper = self.loop.call_later(limits.handshake, self._no_hello)

    # -- what a side does --------------------------------------------------------------------

    def greeted(self, hello: Hello) -> None:
        """The peer's HELLO has come; its limits are taken over already."""

    def on_request(self, flags: int, stream: int, payload: bytes) -> None:
        raise ProtocolError("REQUEST is for the server")

    def on_data(self, flags: int, stream: int, payload: bytes) -> None:
        raise NotImplementedError

    def on_error(self, stream: int, payload: bytes) -> None:
        raise NotImplementedError

    def on_cancel(self, stream: int) -> None:
        raise ProtocolError("CANCEL is for the server")

    def on_window(self, stream: int, credit: int) -> None:
        raise NotImplementedError

    def on_goaway(self, last: int) -> None:
        raise ProtocolError("GOAWAY is for the client")

    def on_deadline(self, stream: int) -> None:
        raise NotImplementedError

    def on_lost(self) -> None:
        raise NotImplementedError

    def deadline_of(self, item: C) -> float | None:
        raise NotImplementedError

    # -- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=256 * 1024)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            frames = self._decoder.feed(data)
            for frame in frames:
                self._dispatch(frame)
        except ProtocolError as error:
            self.abort(error)

    def _dispatch(self, frame: Frame) -> None:
        kind, flags, stream, payload = frame
        if not self._greeted:
            self._hello(kind, stream, payload)
        elif kind == 2:
            self.on_data(flags, stream, payload)
        elif kind == 1:
            self.on_request(flags, stream, payload)
        elif kind == _WINDOW:
            if len(payload) != 4:
                raise ProtocolError("WINDOW takes four bytes")
            self.on_window(stream, int.from_bytes(payload, "big"))
        elif kind == _CANCEL:
            self.on_cancel(stream)
        elif kind == _PING:
            if not flags & ACK:
                self.write(encode_frame(_PING, ACK, 0, payload[:64]))
        elif kind == _GOAWAY:
            self.on_goaway(stream)
        elif kind == Kind.ERROR:
            self.on_error(stream, payload)
        else:
            raise ProtocolError("a second HELLO")

    def _hello(self, kind: int, stream: int, payload: bytes) -> None:
        if kind == Kind.ERROR and stream == 0:
            self.on_error(0, payload)
            return
        if kind != Kind.HELLO:
            raise ProtocolError("the first frame must be HELLO")
        hello = decode_hello(payload)
        self._greeted = True
        self._decoder.limit = self.limits.max_frame + self.limits.max_header + 2
        self.peer_frame = min(hello.max_frame, self.limits.max_frame)
        self.peer_message = hello.max_message
        self.peer_window = hello.window
        self._keeper.cancel()
        self._keeper = self.loop.call_later(self.limits.keepalive, self._keep_alive)
        self.greeted(hello)

    def eof_received(self) -> bool:
        return False  # half-closed is closed: a caller that cannot be answered has gone

    def pause_writing(self) -> None:
        if self.paused is None:
            self.paused = self.loop.create_future()

    def resume_writing(self) -> None:
        paused, self.paused = self.paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._keeper.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.on_lost()
        self._out.clear()
        self.resume_writing()
        if not self.lost.done():
            self.lost.set_result(None)

    # -- writing -------------------------------------------------------------------------------

    def write(self, frame: bytes) -> None:
        out = self._out
        if not out:
            self.loop.call_soon(self.flush)
        out.append(frame)

    def flush(self) -> None:
        """Hand what has gathered to the transport."""
        out = self._out
        if out and self._transport is not None and not self.is_lost:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def say_hello(self) -> None:
        self.write(encode_hello(self.limits))

    def abort(self, error: ProtocolError) -> None:
        """Tell the peer why and close."""
        log.info("connection closed: %s", error)
        self.write(encode_error(0, InternalError("wire", str(error))))
        self.shut()

    def shut(self) -> None:
        self.flush()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            # A peer that does not read must not keep a closing connection for ever.
            self._keeper.cancel()
            self._keeper = self.loop.call_later(1.0, self._transport.abort)

    def kill(self) -> None:
        """Close without a word."""
        if self._transport is not None:
            self._transport.abort()

    # -- time ------------------------------------------------------------------------------------

    def watch_deadline(self, deadline: float) -> None:
        """See to it that ``on_deadline`` runs for a stream that is still there then."""
        if deadline < self._sweep_at:
            if self._sweeper is not None:
                self._sweeper.cancel()
            self._sweep_at = deadline
            self._sweeper = self.loop.call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        now = time.monotonic() + 0.001
        self._sweep_at, self._sweeper = float("inf"), None
        late, following = [], float("inf")
        for stream, item in self.streams.items():
            deadline = self.deadline_of(item)
            if deadline is None:
                continue
            if deadline <= now:
                late.append(stream)
            elif deadline < following:
                following = deadline
        for stream in late:
            self.on_deadline(stream)
        if following < float("inf"):
            self.watch_deadline(following)

    def _no_hello(self) -> None:
        self.abort(ProtocolError(f"no HELLO within {self.limits.handshake:g} s"))

    def _keep_alive(self) -> None:
        self._silent = 0 if self._heard else self._silent + 1
        self._heard = False
        if self._silent >= 2:
            log.info("connection closed: the peer is silent")
            self.kill()
            return
        if self._silent:
            self.write(encode_frame(_PING, 0, 0, b""))
        self._keeper = self.loop.call_later(self.limits.keepalive, self._keep_alive)

    @property
    def unsent(self) -> int:
        """Bytes gathered and not yet handed to the transport, and those the transport holds."""
        held = self._transport.get_write_buffer_size() if self._transport else 0
        return sum(map(len, self._out)) + held

    @property
    def undecoded(self) -> int:
        return self._decoder.buffered


assert HEAD_SIZE == 10
