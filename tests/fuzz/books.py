"""What one side may send on a stream, kept as docs/wire.md says it."""

from __future__ import annotations

import struct

from tests.fuzz.pipe import Frame

HELLO, REQUEST, DATA, ERROR, CANCEL, WINDOW, PING, GOAWAY = range(8)
END, MORE, ACK, BARE = 1, 2, 4, 8
COST = 64


class Books:
    """The frames of one side of ours, checked against what its peer has allowed."""

    def __init__(self, *, window: int, max_frame: int) -> None:
        self._window = window
        self._max_frame = max_frame
        self._credit: dict[int, int] = {}
        self._open_message: set[int] = set()
        self._ended: set[int] = set()

    def opened(self, stream: int) -> None:
        """A stream begins with the window."""
        self._credit[stream] = self._credit.get(stream, 0) + self._window

    def granted(self, stream: int, credit: int) -> None:
        self._credit[stream] = self._credit.get(stream, 0) + credit

    def sent(self, frame: Frame, size: int) -> None:
        """A frame with ``size`` bytes of a message has been sent."""
        stream, flags = frame.stream, frame.flags
        assert stream not in self._ended, f"a frame after the end of stream {stream}"
        assert not (flags & MORE and flags & END)
        assert size <= self._max_frame
        if flags & BARE:
            assert size == 0
            assert not flags & MORE
            assert stream not in self._open_message, "the end comes within a message"
        else:
            assert size or not flags & MORE
            self._credit[stream] = self._credit.get(stream, 0) - size - COST
            assert self._credit[stream] >= 0, f"beyond the credit of stream {stream}"
        if flags & MORE:
            self._open_message.add(stream)
        else:
            self._open_message.discard(stream)
        if flags & END:
            self._ended.add(stream)

    def broke_off(self, stream: int) -> None:
        """An ERROR or a CANCEL: nothing may follow."""
        assert stream not in self._ended, f"stream {stream} is ended twice"
        self._ended.add(stream)


class Peer:
    """What the peer of a side of ours has sent, whatever it is: the credit that it gave and spent.
    ``books`` are kept of what our side sends."""

    def __init__(self, books: Books, given: Given) -> None:
        self._books = books
        self._given = given
        self._rest = bytearray()
        self._sense = True

    def sends(self, data: bytes) -> None:
        """These bytes come now."""
        self._rest += data
        while self._sense and len(self._rest) >= 10:
            length, kind, _, stream = struct.unpack_from(">IBBI", self._rest)
            self._sense = 6 <= length <= 2**16  # else the connection is closed here
            if len(self._rest) < 4 + length:
                return
            payload = self._rest[10 : 4 + length]
            del self._rest[: 4 + length]
            if kind == WINDOW and len(payload) == 4:
                self._books.granted(stream, int.from_bytes(payload, "big"))
            elif kind == REQUEST:
                self._books.opened(stream)
            if kind in (REQUEST, DATA):
                self._given.spent(stream, len(payload))


class Given:
    """Credit that one side of ours gives back: never more than was taken from it."""

    def __init__(self) -> None:
        self._spent: dict[int, int] = {}

    def spent(self, stream: int, size: int) -> None:
        self._spent[stream] = self._spent.get(stream, 0) + size + COST

    def gave(self, stream: int, credit: int) -> None:
        self._spent[stream] = self._spent.get(stream, 0) - credit
        assert self._spent[stream] >= 0, f"more credit than was spent on stream {stream}"
        assert credit, "a WINDOW of nothing"
