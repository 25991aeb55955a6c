"""Frames, greetings and limits, without a connection."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from micro_ray.errors import BadRequest, HeadersTooLarge, InternalError, NotFound, make
from micro_ray.network import Refused
from micro_ray.wire import protocol
from micro_ray.wire.protocol import (
    HEAD_SIZE,
    MAX_HEADER,
    MAX_TIMEOUT_MS,
    Head,
    Kind,
    Limits,
    ProtocolError,
    decode_error,
    decode_hello,
    decode_request,
    encode_error,
    encode_frame,
    encode_head,
    encode_hello,
    encode_request,
)
from tests.unit.wire import raw


def test_the_numbers_of_the_specification() -> None:
    kinds = ["HELLO", "REQUEST", "DATA", "ERROR", "CANCEL", "WINDOW", "PING", "GOAWAY"]
    assert [Kind(n).name for n in range(8)] == kinds
    flags = (protocol.END, protocol.MORE, protocol.ACK, protocol.BARE)
    assert flags == (raw.END, raw.MORE, raw.ACK, raw.BARE) == (1, 2, 4, 8)
    assert (protocol.MAGIC, protocol.VERSION, HEAD_SIZE) == ("micro", 1, 10)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("payload", [b"", b"x", b"\0" * 300])
def test_a_frame_is_ten_bytes_and_its_payload(kind: Kind, payload: bytes) -> None:
    stream, flags = 2**32 - 1, 0xFF
    found = encode_frame(kind, flags, stream, payload)
    assert found == raw.frame(kind, flags, stream, payload)
    assert len(found) == HEAD_SIZE + len(payload)
    assert struct.unpack(">I", found[:4])[0] == len(found) - 4


def hello(payload: bytes) -> dict[str, Any]:
    greeting: dict[str, Any] = json.loads(payload[HEAD_SIZE:])
    return greeting


def test_hello_says_the_limits() -> None:
    limits = Limits(
        max_frame=2048, max_message=4096, window=8192, max_streams=3, max_header=5000
    )  # fmt: skip
    assert hello(encode_hello(limits)) == {
        "magic": "micro",
        "versions": [1, 1],
        "max_frame": 2048,
        "max_message": 4096,
        "window": 8192,
        "max_streams": 3,
        "max_header": 5000,
    }
    found = decode_hello(encode_hello(limits)[HEAD_SIZE:])
    assert (found.max_frame, found.max_message, found.window) == (2048, 4096, 8192)
    assert (found.max_streams, found.max_header, found.versions) == (3, 5000, (1, 1))


def test_a_hello_of_a_later_version_may_say_more() -> None:
    greeting = raw.GREETING | {"versions": [1, 9], "compression": ["zstd"], "max_header": 4096}
    assert decode_hello(json.dumps(greeting).encode()).max_header == 4096
    del greeting["max_header"]
    assert decode_hello(json.dumps(greeting).encode()).max_header == MAX_HEADER


@pytest.mark.parametrize(
    ("versions", "speaks"),
    [
        ((1, 1), True), ((0, 1), True), ((1, 2), True), ((0, 255), True),
        ((2, 3), False), ((0, 0), False), ((2, 1), False), ((-5, -1), False),
    ],
)  # fmt: skip
def test_the_highest_common_version_is_ours(versions: tuple[int, int], speaks: bool) -> None:
    payload = json.dumps(raw.GREETING | {"versions": versions}).encode()
    if speaks:
        assert decode_hello(payload).versions == versions
    else:
        with pytest.raises(ProtocolError, match=r"no common version|does not speak"):
            decode_hello(payload)


BAD_HELLOS = {
    "empty": b"",
    "not JSON": b"GET / HTTP/1.1",
    "not UTF-8": b'{"magic":"\xff"}',
    "a list": b"[]",
    "nothing in it": b"{}",
    "cut off": json.dumps(raw.GREETING).encode()[:-1],
    "deep": b"[" * 100_000,
    "magic": json.dumps(raw.GREETING | {"magic": "other"}).encode(),
    "a number as text": json.dumps(raw.GREETING | {"window": "65536"}).encode(),
    "a fraction": json.dumps(raw.GREETING | {"window": 65536.5}).encode(),
    "one version": json.dumps(raw.GREETING | {"versions": [1]}).encode(),
    "null": json.dumps(raw.GREETING | {"max_frame": None}).encode(),
    "small frame": json.dumps(raw.GREETING | {"max_frame": 1023}).encode(),
    "small window": json.dumps(raw.GREETING | {"window": 1023}).encode(),
    "small header": json.dumps(raw.GREETING | {"max_header": 1023}).encode(),
    "negative": json.dumps(raw.GREETING | {"max_frame": -1}).encode(),
    "huge window": json.dumps(raw.GREETING | {"window": 2**31}).encode(),
    "message below frame": json.dumps(raw.GREETING | {"max_message": 2**20 - 1}).encode(),
    "twice": json.dumps(raw.GREETING).encode() * 2,
}


@pytest.mark.parametrize("payload", BAD_HELLOS.values(), ids=BAD_HELLOS.keys())
def test_a_bad_hello_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_hello(payload)


def test_a_request_is_header_and_body() -> None:
    head = Head("echo", "Echo.Call", 30_000, "text/plain", {"a": "ä"})
    found = encode_request(7, encode_head(head), b"body", raw.END | raw.MORE)
    length, kind, flags, stream, size = struct.unpack(">IBBIH", found[:12])
    assert (kind, flags, stream) == (raw.REQUEST, raw.END | raw.MORE, 7)
    assert length == len(found) - 4
    assert json.loads(found[12 : 12 + size]) == {
        "service": "echo",
        "endpoint": "Echo.Call",
        "timeout_ms": 30_000,
        "content": "text/plain",
        "metadata": {"a": "ä"},
    }
    assert decode_request(found[HEAD_SIZE:]) == (head, b"body")


def test_what_a_header_leaves_out() -> None:
    assert json.loads(encode_head(Head("s", "E.M"))) == {"service": "s", "endpoint": "E.M"}
    header = b'{"service":"s","endpoint":"E.M","later":[1]}'
    head, body = decode_request(struct.pack(">H", len(header)) + header)
    assert head == Head("s", "E.M", 0, "application/json", {})
    assert body == b""


def test_a_header_has_an_end() -> None:
    """A u16 says how long it is."""
    largest = Head(
        "s",
        "E.M",
        metadata={"k": "x" * (MAX_HEADER - len(encode_head(Head("s", "E.M", metadata={"k": ""}))))},
    )
    header = encode_head(largest)
    assert len(header) == MAX_HEADER
    assert decode_request(encode_request(1, header, b"b", 0)[HEAD_SIZE:]) == (largest, b"b")
    with pytest.raises(HeadersTooLarge, match="has 65536 bytes; 65535 allowed"):
        encode_head(Head("s", "E.M", metadata={"k": largest.metadata["k"] + "x"}))
    with pytest.raises(HeadersTooLarge, match="3000 allowed"):
        encode_head(largest, 3000)
    with pytest.raises(HeadersTooLarge, match="3000 allowed"):
        decode_request(struct.pack(">H", 3001) + b" " * 3001, 3000)


@pytest.mark.parametrize("bad", [{"k": 5.5j}, {"k": object()}, {"\ud800": "x"}, {"k": "\udfff"}])
def test_metadata_is_text(bad: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="head cannot be sent"):
        encode_head(Head("s", "E.M", metadata=bad))


BAD_HEADERS = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"service":"\xff","endpoint":"E.M"}',
    "a list": b"[]",
    "no service": b'{"endpoint":"E.M"}',
    "no endpoint": b'{"service":"s"}',
    "a number": b'{"service":"s","endpoint":1}',
    "metadata of numbers": b'{"service":"s","endpoint":"E.M","metadata":{"k":1}}',
    "metadata as a list": b'{"service":"s","endpoint":"E.M","metadata":["k"]}',
    "a negative timeout": b'{"service":"s","endpoint":"E.M","timeout_ms":-1}',
    "half a timeout": b'{"service":"s","endpoint":"E.M","timeout_ms":0.5}',
    "a timeout beyond all": b'{"service":"s","endpoint":"E.M","timeout_ms":4294967296}',
    "a timeout of 400 digits": b'{"service":"s","endpoint":"E.M","timeout_ms":1%b}' % (b"0" * 400),
    "deep": b'{"service":"s","endpoint":"E.M","x":%b' % (b"[" * 50_000),
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_bad_header_is_the_fault_of_its_call(header: bytes) -> None:
    with pytest.raises(BadRequest, match="malformed head of a call"):
        decode_request(struct.pack(">H", len(header)) + header)


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\1", b"\xff\xff{}", b"\0\5{}"])
def test_a_request_shorter_than_its_header_is_the_fault_of_the_connection(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="shorter than its header"):
        decode_request(payload)


def test_the_longest_timeout() -> None:
    header = b'{"service":"s","endpoint":"E.M","timeout_ms":%d}' % MAX_TIMEOUT_MS
    head, _ = decode_request(struct.pack(">H", len(header)) + header)
    assert head.timeout_ms == 2**32 - 1


def test_an_error_has_its_fields() -> None:
    found = encode_error(9, NotFound("store", "nothing there", 1.5))
    assert found[4:10] == bytes([raw.ERROR, raw.END]) + (9).to_bytes(4, "big")
    assert json.loads(found[HEAD_SIZE:]) == {
        "id": "store",
        "code": 404,
        "detail": "nothing there",
        "status": "Not Found",
        "retry_after": 1.5,
    }
    refusal = json.loads(encode_error(9, Refused("wire", "going away", 0.0))[HEAD_SIZE:])
    assert refusal["refused"] is True


@pytest.mark.parametrize("room", [1024, 5000, 2**20])
@pytest.mark.parametrize("text", ["plain ", "\0", "ä\u2028", "\ud800", '"\\'])
def test_an_error_fits_the_peers_frames(room: int, text: str) -> None:
    error = make(418, text * 5000, text * 50_000)
    found = encode_error(1, error, room)
    assert len(found) - HEAD_SIZE <= room
    copy = decode_error(found[HEAD_SIZE:])
    assert copy.code == 400
    whole = text.encode("utf-8", "replace").decode()
    assert copy.detail.rstrip("…")
    assert (whole * 50_000).startswith(copy.detail.rstrip("…"))


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"\xff", b'{"id":"\xff"}', b'{"detail":"\\ud800"}', b"[]", b"1", b"[" * 100_000],
)
def test_an_error_that_cannot_be_read_is_one(payload: bytes) -> None:
    error = decode_error(payload)
    assert type(error) is InternalError
    assert "unreadable" in error.detail


@pytest.mark.parametrize(
    "bad",
    [
        {"max_frame": 1023}, {"max_frame": 2**30 + 1}, {"max_message": 2**20 - 1},
        {"max_message": 2**31 + 1}, {"max_header": 1023}, {"max_header": 65_537},
        {"window": 1023}, {"window": 2**31}, {"max_streams": 0}, {"max_streams": 2**20 + 1},
        {"max_buffered": 1023}, {"handshake": 0}, {"keepalive": 0}, {"keepalive": 3601},
    ],
)  # fmt: skip
def test_limits_that_cannot_be(bad: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=next(iter(bad))):
        Limits(**bad)


def test_the_smallest_limits_speak_with_the_largest() -> None:
    small = Limits(max_frame=1024, max_message=1024, max_header=1024, window=1024, max_streams=1)
    large = Limits(
        max_frame=2**30, max_message=2**31, max_header=65_536, window=2**31 - 1, max_streams=2**20
    )  # fmt: skip
    for limits in (small, large):
        found = decode_hello(encode_hello(limits)[HEAD_SIZE:])
        assert (found.max_frame, found.window) == (limits.max_frame, limits.window)
        assert found.max_header <= MAX_HEADER
