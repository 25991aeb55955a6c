"""Streams into and out of an actor, apart from what Ray does with them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest

from micro_ray.actors.streams import pieces, streamed
from micro_ray.errors import BadRequest


async def three() -> AsyncIterator[bytes]:
    for piece in (b"a", b"b", b"c"):
        yield piece


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (b"whole", [b"whole"]),
        (bytearray(b"whole"), [b"whole"]),
        (b"", [b""]),
        ([], []),
        ([b"a", bytearray(b"b"), memoryview(b"c")], [b"a", b"b", b"c"]),
        ((piece for piece in (b"a", b"b")), [b"a", b"b"]),
    ],
)
async def test_what_bytes_may_come_as(given: Any, taken: list[bytes]) -> None:
    assert [piece async for piece in pieces(given, "store")] == taken


async def test_what_comes_one_by_one() -> None:
    assert [piece async for piece in pieces(three(), "store")] == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("text", "a piece of the stream is str; bytes are kept"),
        ([b"a", 1], "a piece of the stream is int; bytes are kept"),
        (None, "NoneType is no stream of bytes"),
    ],
)
async def test_what_is_no_stream_of_bytes(given: Any, said: str) -> None:
    with pytest.raises(BadRequest) as raised:
        [piece async for piece in pieces(given, "store")]
    assert (raised.value.id, raised.value.detail) == ("store", said)


class Counter:
    """A backend's iterator, and whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    @streamed(ahead=3)
    async def count(self, start: int, *, step: int = 1) -> AsyncIterator[int]:
        """Numbers."""
        try:
            while True:
                yield start
                start += step
        finally:
            self.closed = True


async def test_a_stream_closes_what_it_reads() -> None:
    counter = Counter()
    stream = counter.count(1, step=2)
    assert [await anext(stream) for _ in range(3)] == [1, 3, 5]
    assert not counter.closed
    await stream.aclose()
    assert counter.closed


def test_what_ray_sees_of_a_stream() -> None:
    verb = inspect.unwrap(Counter.count)
    assert inspect.isasyncgenfunction(verb)
    assert list(inspect.signature(verb).parameters) == ["self", "start", "step"]
    assert verb.__doc__ == "Numbers."
    assert vars(verb)["__ray_generator_backpressure_num_objects__"] == 3
