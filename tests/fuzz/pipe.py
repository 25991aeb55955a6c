"""A transport of memory: what was written waits until the other side takes it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

#: Unread bytes at which the writer is told to pause, and to go on.
HIGH, LOW = 600, 200


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


class Pipe(asyncio.Transport):
    """One direction of a line, and its end for both."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self._closing = False
        self._closed_here = False
        self._paused = False
        self.lost = False
        protocol.connection_made(self)

    # -- what the protocol calls ---------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Far lower than asked for, so that short inputs reach them."""

    def get_write_buffer_size(self) -> int:
        return len(self._unread)

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._closed_here, "written after it was closed"
        assert data, "an empty write"
        if self._closing:
            return  # the line is cut, and the protocol does not know yet
        self._unread += data
        if len(self._unread) > HIGH and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def close(self) -> None:
        self._closing = self._closed_here = True
        if not self._unread:
            self.cut()

    def abort(self) -> None:
        self._closing = self._closed_here = True
        self._unread.clear()
        self.cut()

    # -- what the other side does ----------------------------------------------------------------

    def cut(self) -> None:
        """The line ends; the protocol learns it in the next turn of the loop."""
        self._closing = True
        if not self.lost:
            self.lost = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def deliver(self, data: bytes) -> None:
        """Bytes for the protocol; none after it has closed."""
        if data and not self._closing:
            self._protocol.data_received(data)

    def take(self, size: int | None = None) -> bytes:
        """What was written, or a part of it."""
        taken = bytes(self._unread[:size])
        del self._unread[: len(taken)]
        if self._paused and len(self._unread) <= LOW:
            self._paused = False
            self._protocol.resume_writing()
        if self._closing and not self._unread:
            self.cut()
        return taken


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBBI", 6 + len(payload), kind, flags, stream) + payload


class Reader:
    """Reads what a side of ours has written: it must always be frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._rest += data
        while len(self._rest) >= 10:
            length, kind, flags, stream = struct.unpack_from(">IBBI", self._rest)
            assert 6 <= length <= 2**20, length
            assert kind <= 7, kind
            assert not flags & ~0x0F, flags
            if len(self._rest) < 4 + length:
                return
            payload = bytes(self._rest[10 : 4 + length])
            del self._rest[: 4 + length]
            yield Frame(kind, flags, stream, payload)


async def turn(times: int = 1) -> None:
    """Let the loop run what is due."""
    for _ in range(times):
        await asyncio.sleep(0)
