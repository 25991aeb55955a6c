"""Streams over Ray's handles.

A verb that streams gives its caller a generator of object references. **Whoever leaves it ends it
with** ``ray.cancel(generator)``: Ray tells the actor nothing when a generator is merely dropped or
a loop over it is left, and it would run on. One whose process has died is found out when the stream
next has something for it.

The actor is ``ahead`` items before its reader at most, so that a slow one holds back what is read
for it, as on frames, and nothing piles up.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayError

from micro_ray.errors import BadRequest

__all__ = ["AHEAD", "Chunks", "pieces", "streamed"]

T = TypeVar("T")

#: Items that a stream is before its reader, unless its verb says otherwise.
AHEAD = 64

#: What goes into an actor as a stream: bytes whole, or in pieces that are bytes or references to
#: them (each waited for in its turn), or anything that can be sent and iterated over there.
Chunks = bytes | Iterable[Any] | AsyncIterable[Any]


def streamed(
    *, ahead: int = AHEAD
) -> Callable[[Callable[..., AsyncIterator[T]]], Callable[..., AsyncGenerator[T, None]]]:
    """A method that gives a backend's iterator becomes a verb that streams over a handle, and that
    closes the iterator when the stream ends or is cancelled."""

    def decorate(verb: Callable[..., AsyncIterator[T]]) -> Callable[..., AsyncGenerator[T, None]]:
        @functools.wraps(verb)
        async def stream(*args: Any, **options: Any) -> AsyncGenerator[T, None]:
            items = cast("AsyncGenerator[T, None]", verb(*args, **options))
            async with contextlib.aclosing(items):
                async for item in items:
                    yield item

        # Ray looks at what a method wraps, and would see no stream; only its parameters matter.
        vars(stream)["__signature__"] = inspect.signature(verb)
        del vars(stream)["__wrapped__"]
        limited = ray.method(_generator_backpressure_num_objects=ahead)
        return cast("Callable[..., AsyncGenerator[T, None]]", limited(stream))

    return decorate


async def pieces(chunks: Chunks, service: str) -> AsyncIterator[bytes]:
    """The bytes of a stream that came in by a handle. Raises BadRequest in the name of ``service``
    for what is neither bytes nor a reference to them, and for a reference that gives none."""
    whole = isinstance(chunks, bytes | bytearray | memoryview)
    source = [chunks] if whole or isinstance(chunks, str) else chunks
    async for given in _each(source, service):
        piece = given
        if isinstance(given, ray.ObjectRef):
            try:
                piece = await given
            except RayError as error:
                said = str(error).strip().rpartition("\n")[2]
                raise BadRequest(service, f"a piece of the stream did not come: {said}") from None
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise BadRequest(
                service, f"a piece of the stream is {type(piece).__name__}; bytes are kept"
            )
        yield bytes(piece)


async def _each(source: Any, service: str) -> AsyncIterator[Any]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    elif isinstance(source, Iterable):
        for item in source:
            yield item
    else:
        raise BadRequest(service, f"{type(source).__name__} is no stream of bytes")
