"""What both sides of a connection share: frames in and out, keep-alive, deadlines, its end.

Writes of one turn of the loop leave in one system call. A sender waits for the stream's credit and
for the transport; credit is given back when the application has taken a message, so a slow reader
holds back its own senders and nobody's memory grows (docs/wire.md, "Flow control").
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Generic, TypeVar, cast

from micro_ray.errors import InternalError, MicroError
from micro_ray.wire.channel import Channel
from micro_ray.wire.protocol import (
    ACK,
    HEAD_SIZE,
    LEAST,
    MAX_HEADER,
    MAX_PING,
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

__all__ = ["Connection"]

log = logging.getLogger(__name__)

#: Largest payload of a frame before the handshake is done.
HANDSHAKE_FRAME = 4096
#: Bytes that are gathered in one turn of the loop before the transport gets them, and that the
#: transport may hold before senders wait: many senders that go on in one turn must not fill memory.
GATHER = 256 * 1024
#: Seconds that a closing connection has to send what it holds.
LINGER = 1.0
_CANCEL, _WINDOW, _PING, _GOAWAY = (
    int(Kind.CANCEL),
    int(Kind.WINDOW),
    int(Kind.PING),
    int(Kind.GOAWAY),
)


C = TypeVar("C")


class Connection(asyncio.Protocol, Generic[C]):
    """One connection; subclassed by the two sides. ``C`` is what a stream is to that side."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.streams: dict[int, C] = {}
        #: Bytes of messages that have come and nobody has taken.
        self.buffered = 0
        #: Whether senders wait, because the transport is full, or enough was written in this turn
        #: of the loop, or the connection is closing; and who waits.
        self.paused = False
        self._full = False
        self._enough = False
        self.blocked: set[asyncio.Future[None]] = set()
        self.peer_frame = limits.max_frame
        self.peer_message = limits.max_message
        self.peer_header = MAX_HEADER
        self.peer_window = limits.window
        self.lost: asyncio.Future[None] = self.loop.create_future()
        self.is_lost = False
        self._decoder = Decoder(HANDSHAKE_FRAME)
        self._out: list[bytes] = []
        self._gathered = 0
        self._shut = False
        self._transport: asyncio.Transport | None = None
        self._heard = True
        self._silent = 0
        self.has_greeted = False
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

    def give_up(self, channel: Channel, error: MicroError) -> None:
        """End a stream from here, and tell the peer."""
        raise NotImplementedError

    # -- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=GATHER)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self.paused and self.unsent > self.limits.max_buffered:
            log.info("connection closed: the peer sends and takes nothing")
            self.kill()
            return
        try:
            frames = self._decoder.feed(data)
            for frame in frames:
                self._dispatch(frame)
        except ProtocolError as error:
            self.abort(error)

    def _dispatch(self, frame: Frame) -> None:
        kind, flags, stream, payload = frame
        if not self.has_greeted:
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
                self.write(encode_frame(_PING, ACK, 0, payload[:MAX_PING]))
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
        self.has_greeted = True
        self._decoder.limit = self.limits.max_frame + self.limits.max_header + 2
        self.peer_frame = min(hello.max_frame, self.limits.max_frame)
        self.peer_message = hello.max_message
        self.peer_header = min(hello.max_header, MAX_HEADER)
        self.peer_window = hello.window
        self._keeper.cancel()
        self._keeper = self.loop.call_later(self.limits.keepalive, self._keep_alive)
        self.greeted(hello)

    def eof_received(self) -> bool:
        return False  # half-closed is closed: a caller that cannot be answered has gone

    def pause_writing(self) -> None:
        self._full = self.paused = True

    def resume_writing(self) -> None:
        self._full = False
        self._resume()

    def _next_turn(self) -> None:
        self._enough = False
        self._resume()

    def _resume(self) -> None:
        if self._full or self._enough or (self._shut and not self.is_lost):
            return
        self.paused = False
        # A future each: one that all wait for would be cancelled for all with the first of them.
        for waiter in self.blocked:
            if not waiter.done():
                waiter.set_result(None)
        self.blocked.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._keeper.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.on_lost()
        self._out.clear()
        self._decoder = Decoder(0)  # whoever holds this on need not hold half a frame
        self._full = self._enough = False
        self._resume()
        if not self.lost.done():
            self.lost.set_result(None)

    # -- writing -------------------------------------------------------------------------------

    def write(self, frame: bytes) -> None:
        out = self._out
        if not out:
            self.loop.call_soon(self.flush)
        out.append(frame)
        self._gathered += len(frame)
        if self._gathered > GATHER:
            self.flush()
            # A sender with credit to spare must let the loop turn, or nothing else is ever heard:
            # not a deadline, not that the peer has gone.
            if not self._enough:
                self._enough = self.paused = True
                self.loop.call_soon(self._next_turn)

    def flush(self) -> None:
        """Hand what has gathered to the transport."""
        out = self._out
        if out and self._transport is not None and not self.is_lost and not self._shut:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()
        self._gathered = 0

    def say_hello(self) -> None:
        self.write(encode_hello(self.limits))

    def abort(self, error: ProtocolError) -> None:
        """Tell the peer why and close."""
        log.info("connection closed: %s", error)
        self.write(encode_error(0, InternalError("wire", str(error)), LEAST))
        self.shut()

    def shut(self) -> None:
        """Close once what was written has been sent."""
        self.flush()
        self._shut = self.paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            # A peer that does not read must not keep a closing connection for ever.
            self._keeper.cancel()
            self._keeper = self.loop.call_later(LINGER, self._transport.abort)

    def kill(self) -> None:
        """Close without a word."""
        self._shut = self.paused = True
        if self._transport is not None:
            self._transport.abort()
        else:
            self._keeper.cancel()  # it was never connected, and will not be lost either

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
