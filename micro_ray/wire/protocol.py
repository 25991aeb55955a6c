"""Bytes to frames and back, without I/O. The specification is docs/wire.md."""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Annotated, Any

import msgspec

from micro_ray.errors import (
    MAX_ID,
    BadRequest,
    HeadersTooLarge,
    MicroError,
    Unavailable,
    from_dict,
)
from micro_ray.network import Refused
from micro_ray.settings import Wire

__all__ = [
    "ACK",
    "BARE",
    "CONTENT",
    "COST",
    "END",
    "HEAD_SIZE",
    "LEAST",
    "MAGIC",
    "MAX_CREDIT",
    "MAX_HEADER",
    "MAX_PING",
    "MAX_TIMEOUT_MS",
    "MORE",
    "VERSION",
    "Decoder",
    "Head",
    "Hello",
    "Kind",
    "Limits",
    "ProtocolError",
    "decode_error",
    "decode_hello",
    "decode_request",
    "encode_error",
    "encode_frame",
    "encode_head",
    "encode_hello",
    "encode_request",
    "limits_of",
    "never_opened",
]

MAGIC = "micro"
#: The one version there is. Both sides name the range they speak; the highest common one is used.
VERSION = 1


class Kind(IntEnum):
    HELLO = 0
    REQUEST = 1
    DATA = 2
    ERROR = 3
    CANCEL = 4
    WINDOW = 5
    PING = 6
    GOAWAY = 7


#: Flags: END, the last frame of this side of the stream; MORE, the message goes on in the next
#: frame; ACK, the answer to a PING; BARE, the frame carries no message.
END, MORE, ACK, BARE = 1, 2, 4, 8

_HEAD = struct.Struct(">IBBI")
HEAD_SIZE = _HEAD.size
#: Bytes of kind, flags and stream id, which the length counts.
_COUNTED = 6
_LAST_KIND = max(Kind)

#: The media type that need not be said. (What is left out is known by being this very object.)
CONTENT = "application/json"
#: Largest header of a REQUEST: its length is a u16.
MAX_HEADER = 2**16 - 1
#: Longest timeout of a call, 49 days.
MAX_TIMEOUT_MS = 2**32 - 1
#: Credit that a frame with a message or a part of one takes beside its payload: what a receiver
#: spends on it. A million empty messages are not for nothing.
COST = 64
#: Most credit that one side of a stream may have.
MAX_CREDIT = 2**31 - 1
#: No limit may be smaller: what the protocol itself sends must fit.
LEAST = 1024
#: Bytes of a PING that come back.
MAX_PING = 64
#: Pieces of a frame that are kept apart until they are joined.
_PIECES = 1024
#: What msgspec raises for bytes that are not what they should be. A RecursionError is for lists in
#: lists in lists.
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one side accepts. Sizes in bytes, times in seconds.

    ``window`` is the credit each stream starts with. ``max_buffered`` is what one connection may
    hold of messages that nobody has taken: above it new streams are refused and messages of many
    frames are given up, above twice of it every message is. It is also what may wait for a peer
    that goes on sending and takes nothing, before it is dropped. A PING is sent after ``keepalive``
    of silence, and a peer that stays silent as long again is gone.

    Raises BadRequest that names the limit for one outside of what the protocol can do.
    """

    max_frame: int = 2**20
    max_message: int = 16 * 2**20
    max_header: int = 64 * 2**10
    window: int = 256 * 2**10
    max_streams: int = 10_000
    max_buffered: int = 64 * 2**20
    handshake: float = 5.0
    keepalive: float = 10.0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_frame", LEAST, 2**30),
            ("max_message", self.max_frame, 2**31),
            ("max_header", LEAST, MAX_HEADER + 1),
            ("window", LEAST, MAX_CREDIT),
            ("max_streams", 1, 2**20),
            ("max_buffered", LEAST, 2**40),
            ("handshake", 0.001, 3600),
            ("keepalive", 0.001, 3600),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise BadRequest("wire", f"{name} of {value} is not within {least} and {most}")


def limits_of(wire: Wire) -> Limits:
    """The limits that the settings ask for. What may be buffered follows the largest message, which
    could not arrive otherwise."""
    room = max(Limits().max_buffered, 2 * wire.max_message)
    return Limits(**asdict(wire), max_buffered=room)


class ProtocolError(Exception):
    """The peer broke the protocol; the connection cannot go on."""


def never_opened(what: str, stream: int) -> ProtocolError:
    """A frame for a stream that was never opened: one that is even, or greater than the newest."""
    return ProtocolError(f"{what} on stream {stream}, which was never opened")


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame of each side. ``versions`` is [lowest, highest]."""

    magic: str
    versions: tuple[int, int]
    max_frame: int
    max_message: int
    window: int
    max_streams: int
    max_header: int = MAX_HEADER


class Head(msgspec.Struct, omit_defaults=True):
    """The header of a REQUEST. ``timeout_ms`` 0 is no deadline."""

    service: str
    endpoint: str
    timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMEOUT_MS)] = 0
    content: str = CONTENT
    metadata: dict[str, str] = {}


_encode_json = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(Head).decode
_decode_hello = msgspec.json.Decoder(Hello).decode
_pack = _HEAD.pack
_unpack_from = _HEAD.unpack_from

Frame = tuple[int, int, int, bytes]


def encode_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame: u32 length of what follows it, u8 kind, u8 flags, u32 stream, payload."""
    return _pack(_COUNTED + len(payload), kind, flags, stream) + payload


def encode_hello(limits: Limits) -> bytes:
    hello = Hello(
        magic=MAGIC,
        versions=(VERSION, VERSION),
        max_frame=limits.max_frame,
        max_message=limits.max_message,
        window=limits.window,
        max_streams=limits.max_streams,
        max_header=min(limits.max_header, MAX_HEADER),
    )
    return encode_frame(Kind.HELLO, 0, 0, _encode_json(hello))


def decode_hello(payload: bytes) -> Hello:
    """Raises ProtocolError for anything but a HELLO this version can talk to."""
    try:
        hello = _decode_hello(payload)
    except _MALFORMED as error:
        raise ProtocolError(f"malformed HELLO: {error}") from None
    low, high = hello.versions
    if hello.magic != MAGIC or low > high:
        raise ProtocolError("the peer does not speak micro frames")
    if not low <= VERSION <= high:
        raise ProtocolError(f"no common version: here {VERSION}, there {low} to {high}")
    if min(hello.max_frame, hello.window, hello.max_header) < LEAST:
        raise ProtocolError(f"the peer's limits are too small ({LEAST} bytes at least)")
    if hello.max_message < hello.max_frame:
        raise ProtocolError("the peer's max_message is smaller than its max_frame")
    if hello.window > MAX_CREDIT:
        raise ProtocolError(f"the peer's window is too large ({MAX_CREDIT} bytes at most)")
    return hello


def encode_head(head: Head, limit: int = MAX_HEADER) -> bytes:
    """The header of a REQUEST. Raises HeadersTooLarge over ``limit`` bytes, BadRequest for what is
    no text."""
    try:
        header = _encode_json(head)
    except (TypeError, ValueError) as error:
        raise BadRequest("wire", f"the call's head cannot be sent: {error}") from None
    if len(header) > limit:
        raise HeadersTooLarge(
            "wire", f"the call's head has {len(header)} bytes; {limit} allowed. Send less metadata"
        )
    return header


def encode_request(stream: int, header: bytes, body: bytes, flags: int) -> bytes:
    """A REQUEST: u16 length of the JSON header, the header, the beginning of the first message."""
    size = len(header)
    return b"".join(
        (
            _pack(_COUNTED + 2 + size + len(body), Kind.REQUEST, flags, stream),
            size.to_bytes(2, "big"),
            header,
            body,
        )
    )


def decode_request(payload: bytes, limit: int = MAX_HEADER) -> tuple[Head, bytes]:
    """The header and the beginning of the first message.

    Raises ProtocolError for a frame shorter than it says, HeadersTooLarge for a header over
    ``limit`` bytes, BadRequest that names the field for one that is malformed: the last two are
    the call's fault, not the connection's.
    """
    size = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 + size:
        raise ProtocolError("REQUEST shorter than its header")
    if size > limit:
        raise HeadersTooLarge("wire", f"the call's head has {size} bytes; {limit} allowed")
    try:
        head = _decode_head(payload[2 : 2 + size])
    except _MALFORMED as error:
        raise BadRequest("wire", f"malformed head of a call: {error}") from None
    return head, payload[2 + size :]


def encode_error(stream: int, error: MicroError, room: int = 2**20) -> bytes:
    """An ERROR. A refusal says so: the caller may then try another node, whatever the call was.

    Its texts are shortened to what ``room`` bytes of payload hold.
    """
    form = error.to_dict()
    if isinstance(error, Refused):
        form["refused"] = True
    return encode_frame(Kind.ERROR, END, stream, _fitted(form, room))


def _fitted(form: dict[str, Any], room: int) -> bytes:
    id, detail = str(form["id"])[:MAX_ID], str(form["detail"])
    while True:
        form |= {"id": id, "detail": detail}
        try:
            payload = _encode_json(form)
        except UnicodeEncodeError:  # half of a surrogate pair, as names of files may have
            id, detail = (text.encode("utf-8", "replace").decode() for text in (id, detail))
            continue
        if len(payload) <= room or not (id or detail):
            return payload
        if len(detail) >= len(id):
            detail = detail[: len(detail) // 2]
        else:
            id = id[: len(id) // 2]


def decode_error(payload: bytes) -> MicroError:
    """Never raises: garbage becomes an InternalError that says so."""
    try:
        form = msgspec.json.decode(payload, type=dict)
    except _MALFORMED:
        form = {"code": 500, "id": "wire", "detail": "the peer sent an unreadable error"}
    error = from_dict(form)
    if form.get("refused") is True and isinstance(error, Unavailable):
        return Refused(error.id, error.detail, error.retry_after)
    return error


class Decoder:
    """Incremental: feed bytes as they come, get whole frames. Holds at most one frame.

    ``limit`` is the largest payload accepted; before the handshake it may be small.
    """

    __slots__ = ("_need", "_parts", "_size", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._need = HEAD_SIZE

    @property
    def buffered(self) -> int:
        return self._size

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are now complete, in order. Raises ProtocolError (and is of no further
        use) for a length or kind that cannot be; frames before it in the same bytes are lost."""
        if self._parts:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._need:
                if len(self._parts) >= _PIECES:  # a list of tiny pieces is larger than they are
                    self._parts = [b"".join(self._parts)]
                return []
            data = b"".join(self._parts)
            self._parts = []
            self._size = 0
        frames: list[Frame] = []
        position, size = 0, len(data)
        need = HEAD_SIZE
        while size - position >= HEAD_SIZE:
            length, kind, flags, stream = _unpack_from(data, position)
            if length < _COUNTED or length - _COUNTED > self.limit:
                raise ProtocolError(
                    f"frame of {length} bytes (6 to {self.limit + _COUNTED} allowed)"
                )
            if kind > _LAST_KIND:
                raise ProtocolError(f"unknown frame kind {kind}")
            need = 4 + length
            end = position + need
            if end > size:
                break
            frames.append((kind, flags, stream, data[position + HEAD_SIZE : end]))
            position = end
            need = HEAD_SIZE
        if position < size:
            self._parts = [data[position:]] if position else [bytes(data)]
            self._size = size - position
            self._need = need
        return frames
