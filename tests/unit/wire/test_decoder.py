"""Bytes to frames, whatever the bytes and however they are cut."""

from __future__ import annotations

import struct
import sys
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from micro_ray.wire.protocol import HEAD_SIZE, Decoder, Kind, ProtocolError
from tests.unit.wire import raw

LIMIT = 2000

frames = st.lists(
    st.tuples(
        st.integers(0, 7), st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=50)
    )
)
cuts = st.lists(st.integers(0, 10_000))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The same bytes, cut at these places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


@given(frames, cuts)
def test_frames_come_out_as_they_went_in(
    sent: list[tuple[int, int, int, bytes]], cuts: list[int]
) -> None:
    decoder, found = Decoder(LIMIT), []
    for piece in pieces(b"".join(raw.frame(*one) for one in sent), cuts):
        found += decoder.feed(piece)
    assert found == sent
    assert all(type(payload) is bytes for *_, payload in found)
    assert decoder.buffered == 0


@given(frames, st.binary(max_size=100), cuts)
@example([], b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", [])
def test_any_bytes_are_frames_or_a_protocol_error(
    sent: list[tuple[int, int, int, bytes]], junk: bytes, cuts: list[int]
) -> None:
    decoder, found, error = Decoder(LIMIT), [], None
    data = b"".join(raw.frame(*one) for one in sent) + junk
    taken = 0
    for piece in pieces(data, cuts):
        taken += len(piece)
        try:
            found += decoder.feed(piece)
        except ProtocolError as raised:
            error = raised
            break
        assert decoder.buffered <= HEAD_SIZE + LIMIT
    whole = b"".join(raw.frame(*one) for one in found)
    assert data.startswith(whole)
    if error is None:
        # What is not a frame yet is kept, and it is the beginning of one.
        assert decoder.buffered == len(data) - len(whole)
    else:
        assert _impossible(data, taken)


def _impossible(data: bytes, taken: int) -> bool:
    """Whether a head that cannot be is within the first bytes."""
    at = 0
    while at + HEAD_SIZE <= taken:
        length, kind = struct.unpack_from(">IB", data, at)
        if not 6 <= length <= LIMIT + 6 or kind > max(Kind):
            return True
        at += 4 + length
    return False


@pytest.mark.parametrize("length", [0, 1, 5, LIMIT + 7, 2**31, 2**32 - 1])
def test_a_length_that_cannot_be_is_known_from_the_head(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"frame of {length} bytes"):
        Decoder(LIMIT).feed(struct.pack(">IBBI", length, raw.DATA, 0, 1))


@pytest.mark.parametrize("length", [6, LIMIT + 6])
def test_lengths_that_just_can_be(length: int) -> None:
    head = struct.pack(">IBBI", length, raw.DATA, 0, 1)
    assert Decoder(LIMIT).feed(head + b"x" * (length - 6)) == [
        (raw.DATA, 0, 1, b"x" * (length - 6))
    ]


@pytest.mark.parametrize("kind", [8, 9, 255])
def test_a_kind_that_nobody_knows_is_refused(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown frame kind {kind}"):
        Decoder(LIMIT).feed(raw.frame(kind))


def test_a_raised_limit_holds_from_the_next_bytes_on() -> None:
    decoder = Decoder(10)
    with pytest.raises(ProtocolError):
        decoder.feed(raw.frame(raw.DATA, 0, 1, b"x" * 11))
    decoder = Decoder(10)
    assert decoder.feed(raw.frame(raw.HELLO, 0, 0, b"x" * 10)) == [(0, 0, 0, b"x" * 10)]
    decoder.limit = 11
    assert len(decoder.feed(raw.frame(raw.DATA, 0, 1, b"x" * 11))) == 1


def test_a_frame_in_tiny_pieces_takes_little_more_than_its_bytes() -> None:
    """A list of a million two-byte strings takes forty times what they say."""
    size = 300_000
    decoder, data = Decoder(size), raw.frame(raw.DATA, 0, 1, b"xy" * (size // 2))
    largest = 0
    for at in range(0, len(data) - 2, 2):
        assert decoder.feed(data[at : at + 2]) == []
        if at % 1000 == 0:
            parts = decoder._parts  # the only place where it keeps bytes
            largest = max(largest, sys.getsizeof(parts) + sum(map(sys.getsizeof, parts)))
    assert decoder.buffered == len(data) - 2
    assert decoder.feed(data[-2:]) == [(raw.DATA, 0, 1, b"xy" * (size // 2))]
    assert largest < 2 * size
