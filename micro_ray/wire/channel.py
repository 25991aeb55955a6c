"""One stream of a connection as one side sees it: messages in both directions, with credit."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from micro_ray.errors import Cancelled, InternalError, MicroError, TooLarge, TooManyRequests
from micro_ray.wire.protocol import (
    BARE,
    COST,
    END,
    MAX_CREDIT,
    MORE,
    Kind,
    ProtocolError,
    encode_frame,
)

if TYPE_CHECKING:
    from micro_ray.wire.connection import Connection

__all__ = ["Channel"]

_DATA, _WINDOW = int(Kind.DATA), int(Kind.WINDOW)
#: Flags of frames that are not a whole message.
_PARTIAL = MORE | BARE


class Channel:
    """One stream. ``error`` is set once it has failed; ``local_done`` and ``remote_done`` say which
    side has ended its messages."""

    __slots__ = (
        "connection",
        "credit",
        "deadline",
        "deferred",
        "error",
        "held",
        "inbox",
        "local_done",
        "owed",
        "parts",
        "remote_done",
        "send_waiter",
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
        self.parts: bytearray | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.error: MicroError | None = None
        self.remote_done = False
        self.local_done = False
        self.credit = connection.peer_window
        self.send_waiter: asyncio.Future[None] | None = None
        self.held = 0
        self.owed = 0
        self.deferred = 0
        self.sending: asyncio.Lock | None = None

    # -- incoming ----------------------------------------------------------------------------

    def feed(self, flags: int, payload: bytes) -> None:
        """Take a DATA frame (or the message part of a REQUEST).

        Raises TooLarge for a message over the limit and TooManyRequests when the connection holds
        too much already, which end the call; ProtocolError when the peer sends beyond its credit or
        with flags that contradict each other.
        """
        if self.error is not None:
            return  # nobody will take it
        connection = self.connection
        size = len(payload)
        cost = 0 if flags & BARE else size + COST
        self.held += cost
        if self.held > connection.limits.window:
            raise ProtocolError(f"stream {self.stream}: sent beyond its credit")
        if flags & _PARTIAL:
            self._check_flags(flags, size)
        if flags & MORE:
            self._assemble(payload)
            # The rest of a message must be able to come, but not while others wait to be taken.
            if self.inbox:
                self.deferred += cost
            else:
                self._give(cost)
            return
        if not flags & BARE:
            if self.parts is not None:
                payload = self._assembled(payload)
            connection.buffered += len(payload) + COST
            if connection.buffered > connection.limits.max_buffered:
                self._check_room(len(payload) + COST)
            self.inbox.append((payload, cost))
        if flags & END:
            self.remote_done = True
        self.wake()

    def _check_flags(self, flags: int, size: int) -> None:
        if flags & BARE and (size or flags & MORE or self.parts is not None):
            raise ProtocolError(f"stream {self.stream}: a BARE frame with or within a message")
        if flags & MORE and (flags & END or not size):
            raise ProtocolError(f"stream {self.stream}: MORE on the last frame or an empty one")

    def _assemble(self, payload: bytes) -> None:
        """Credit bounds what one stream may send, ``max_buffered`` what all may. A message of many
        frames is given credit before it is taken, so it is the first to go."""
        connection, limits = self.connection, self.connection.limits
        if self.parts is None:
            self.parts = bytearray()
        self.parts += payload
        connection.buffered += len(payload)
        if len(self.parts) > limits.max_message:
            raise TooLarge("wire", f"message over {limits.max_message} bytes")
        if connection.buffered > limits.max_buffered:
            raise _crowded(limits.max_buffered)

    def _assembled(self, payload: bytes) -> bytes:
        self._assemble(payload)
        assert self.parts is not None
        whole = bytes(self.parts)
        self._forget_parts()
        return whole

    def _check_room(self, size: int) -> None:
        """Nobody takes anything on this connection, but new messages still have credit."""
        connection = self.connection
        if connection.buffered > 2 * connection.limits.max_buffered:
            connection.buffered -= size
            raise _crowded(connection.limits.max_buffered)

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
            waiter = self.waiter = self.connection.loop.create_future()
            try:
                await waiter
            finally:
                if self.waiter is waiter:
                    self.waiter = None
        message, size = self.inbox.popleft()
        self.connection.buffered -= len(message) + COST
        if not self.inbox:
            size, self.deferred = size + self.deferred, 0
        self._give(size)
        return message

    # -- outgoing ----------------------------------------------------------------------------

    async def send(self, message: bytes) -> None:
        """Send one message; waits for the stream's credit and for the transport. One that is
        cancelled in the middle of a message ends the stream: nothing can follow half a message."""
        await self._send(message, 0)

    async def _send(self, message: bytes, flags: int) -> None:
        connection = self.connection
        size = len(message)
        if (
            size + COST <= self.credit
            and size <= connection.peer_frame
            and self.sending is None
            and not connection.paused
        ):
            self.check()
            frame = encode_frame(_DATA, flags, self.stream, message)
            self.credit -= size + COST
            if flags & END:
                self.local_done = True
            connection.write(frame)
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
        begun = False
        try:
            while True:
                while connection.paused or self.credit < COST + min(1, view.nbytes):
                    self.check()
                    await self._room()
                self.check()
                size = min(view.nbytes, self.credit - COST, connection.peer_frame)
                last = size == view.nbytes
                part = flags if last else MORE
                connection.write(encode_frame(_DATA, part, self.stream, bytes(view[:size])))
                self.credit -= size + COST
                if last:
                    if flags & END:
                        self.local_done = True
                    return
                begun = True
                view = view[size:]
        except asyncio.CancelledError:
            if begun and self.error is None and not self.local_done:
                connection.give_up(self, Cancelled("wire", "a message was cut off in the middle"))
            raise

    async def _room(self) -> None:
        """Wait for credit, for the transport, or for the end of the stream."""
        waiter = self.send_waiter = self.connection.loop.create_future()
        blocked = self.connection.blocked
        blocked.add(waiter)
        try:
            await waiter
        finally:
            blocked.discard(waiter)
            self.send_waiter = None

    def check(self) -> None:
        """Raise what a sender must know."""
        if self.error is not None:
            raise self.error
        if self.local_done:
            raise Cancelled("wire", "this side of the stream has ended")

    async def end(self) -> None:
        """No more messages from this side; waits for the one that is being sent. Idempotent."""
        if self.sending is not None:
            async with self.sending:
                pass
        if not self.local_done and self.error is None:
            self.local_done = True
            self.connection.write(encode_frame(_DATA, END | BARE, self.stream))

    def grant(self, credit: int) -> None:
        """Take credit that the peer gives. Raises ProtocolError for more than there can be."""
        self.credit += credit
        if self.credit > MAX_CREDIT:
            raise ProtocolError(f"stream {self.stream}: credit beyond {MAX_CREDIT}")
        self.wake_sender()

    def wake_sender(self) -> None:
        waiter = self.send_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: MicroError) -> None:
        """End both directions; receivers get what came before, then the error."""
        if self.error is None:
            self.error = error
        self._forget_parts()
        self.wake()
        self.wake_sender()

    def discard(self) -> None:
        """Forget what was not received: nobody will take it."""
        for message, _ in self.inbox:
            self.connection.buffered -= len(message) + COST
        self.inbox.clear()
        self._forget_parts()

    def _forget_parts(self) -> None:
        if self.parts is not None:
            self.connection.buffered -= len(self.parts)
            self.parts = None


def _crowded(most: int) -> TooManyRequests:
    return TooManyRequests("wire", f"over {most} bytes unread on this connection", 0.1)
