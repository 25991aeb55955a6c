"""The services behind the door of these tests. They do real work; ``Probe`` is how a test sees what
a handler has seen."""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from micro_ray import Service
from micro_ray.context import Context
from micro_ray.errors import make


class Probe:
    """What happened in handlers, counted by a name that the request gives."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.produced: Counter[str] = Counter()
        self.release = asyncio.Event()

    async def hold(self, name: str) -> None:
        """Wait until the test lets go, and note how it ended."""
        self.begun[name] += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled[name] += 1
            raise
        self.ended[name] += 1


class Colour(enum.Enum):
    RED = "red"
    ONE = "1"


@dataclass(slots=True)
class Place:
    city: str = ""
    zip: int = 0


@dataclass(slots=True)
class Everything:
    count: int = 0
    ratio: float = 0.0
    sure: bool = False
    text: str = ""
    tags: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    pair: tuple[int, str] = (0, "")
    place: Place = field(default_factory=Place)
    labels: dict[str, str] = field(default_factory=dict)
    colour: Colour = Colour.RED
    maybe: int | None = 7
    either: int | str = 0
    when: datetime | None = None


def echo(probe: Probe) -> Service:
    """Unary endpoints."""
    service = Service("echo", description="Answers what it is given")

    @service.endpoint
    async def call(name: str = "World") -> dict[str, str]:
        return {"message": f"Hello {name}"}

    @service.endpoint
    async def everything(request: Everything) -> Everything:
        return request

    @service.endpoint
    async def free(request: dict[str, Any]) -> dict[str, Any]:
        return request

    @service.endpoint
    async def raw(body: bytes) -> bytes:
        return body

    @service.endpoint
    async def measure(body: bytes, context: Context) -> dict[str, Any]:
        along = {k: v for k, v in context.metadata.items() if k.startswith("x-api-field-")}
        return {"size": len(body), "fields": along}

    @service.endpoint
    async def bytes_of(size: int = 0) -> bytes:
        return b"x" * size

    @service.endpoint
    async def context(context: Context) -> dict[str, Any]:
        return {
            "metadata": dict(context.metadata),
            "namespace": context.namespace,
            "caller": context.caller,
            "request_id": context.request_id,
            "trace": context.trace,
            "remaining": context.remaining(),
        }

    @service.endpoint
    async def fail(code: int, retry_after: float | None = None) -> None:
        raise make(code, "", f"as asked: {code}", retry_after)

    @service.endpoint
    async def crash() -> None:
        raise ValueError("boom \r\nset-cookie: a=b")

    @service.endpoint
    async def hang(name: str) -> dict[str, str]:
        await probe.hold(name)
        return {"name": name}

    @service.endpoint
    async def liar() -> dict[str, int]:
        return object()  # type: ignore[return-value]

    return service


@dataclass
class Number:
    value: int


def streams(probe: Probe) -> Service:
    """Endpoints of every streaming kind."""
    service = Service("streams")

    @service.endpoint
    async def count(to: int = 3, fail: int = 0, crash: bool = False) -> AsyncIterator[Number]:
        for value in range(1, to + 1):
            yield Number(value)
        if fail:
            raise make(fail, "", "as asked, late")
        if crash:
            raise ValueError("boom")

    @service.endpoint
    async def sum(numbers: AsyncIterator[Number]) -> Number:
        total = 0
        async for number in numbers:
            total += number.value
        return Number(total)

    @service.endpoint
    async def double(numbers: AsyncIterator[Number]) -> AsyncIterator[Number]:
        async for number in numbers:
            yield Number(number.value * 2)

    @service.endpoint
    async def silent(name: str) -> AsyncIterator[Number]:
        await probe.hold(name)
        yield Number(1)

    @service.endpoint
    async def deaf(numbers: AsyncIterator[dict[str, Any]]) -> AsyncIterator[Number]:
        """Takes one message, answers it, and neither reads nor writes any more."""
        async for number in numbers:
            yield Number(number["value"])
            await probe.hold(str(number.get("name", "deaf")))

    @service.endpoint
    async def endless(name: str, size: int = 1000) -> AsyncIterator[bytes]:
        probe.begun[name] += 1
        try:
            while True:
                yield b"x" * size
                probe.produced[name] += size
        finally:
            probe.cancelled[name] += 1

    @service.endpoint
    async def pieces(size: int, times: int, fail: bool = False) -> AsyncIterator[bytes]:
        piece = b"x" * size
        for _ in range(times):
            yield piece
        if fail:
            raise ValueError("boom")

    @service.endpoint
    async def take(pieces: AsyncIterator[bytes], context: Context) -> dict[str, Any]:
        size = 0
        async for piece in pieces:
            size += len(piece)
        along = {k: v for k, v in context.metadata.items() if k.startswith("x-api-field-")}
        return {"size": size, "fields": along}

    @service.endpoint
    async def mirror(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield piece

    @service.endpoint
    async def refuse(numbers: AsyncIterator[Number]) -> Number:
        async for number in numbers:
            raise make(409, "", f"no more after {number.value}")
        return Number(0)

    @service.endpoint
    async def lines(text: str) -> AsyncIterator[dict[str, str]]:
        yield {"text": text}

    return service


def users() -> Service:
    """Endpoints with paths of their own."""
    service = Service("users")

    @service.endpoint(path="/users/{id}", method="GET")
    async def read(id: int, verbose: bool = False) -> dict[str, Any]:
        return {"read": id, "verbose": verbose}

    @service.endpoint(path="/users/me", method="GET")
    async def me() -> dict[str, Any]:
        return {"me": True}

    @service.endpoint(path="/users/{id}", method="PUT, PATCH")
    async def write(id: int, name: str = "", place: Place | None = None) -> dict[str, Any]:
        return {"write": id, "name": name, "city": place.city if place else None}

    @service.endpoint(path="/users/{id}", method="DELETE")
    async def delete(id: int) -> dict[str, Any]:
        return {"delete": id}

    @service.endpoint(path="/users/{id}/files/{name=**}", method="GET")
    async def file(id: int, name: str) -> dict[str, Any]:
        return {"id": id, "file": name}

    @service.endpoint(path="/users/{id}/files/{name=**}", method="PUT")
    async def upload(body: bytes, context: Context) -> dict[str, Any]:
        along = {k: v for k, v in context.metadata.items() if k.startswith("x-api-field-")}
        return {"size": len(body), "fields": along}

    @service.endpoint(path="/at/{place.city}/{place.zip}", method="GET")
    async def at(place: Place, extra: str = "") -> dict[str, Any]:
        return {"city": place.city, "zip": place.zip}

    @service.endpoint(path="/rooms/{room}/events", method="GET")
    async def events(room: str, to: int = 2) -> AsyncIterator[dict[str, Any]]:
        for number in range(to):
            yield {"room": room, "number": number}

    @service.endpoint(path="/{code}", method="GET")
    async def short(code: str) -> dict[str, Any]:
        return {"code": code}

    return service
