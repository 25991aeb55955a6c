"""Services that the tests of the command line call: every type and kind of endpoint there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pydantic

from micro_ray import Context, Service, errors


class Colour(Enum):
    RED = "red"
    GREEN = "green"


@dataclass
class Address:
    street: str
    number: int = 1


@dataclass
class Tree:
    value: int
    left: Tree | None = None


@dataclass
class Everything:
    text: str
    count: int
    ratio: float = 0.5
    loud: bool = False
    colour: Colour = Colour.RED
    level: Literal["low", 3] = "low"
    tags: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    pair: tuple[int, str] = (1, "x")
    labels: dict[str, int] = field(default_factory=dict)
    either: int | str = 0
    maybe: int | None = None
    on: bool | None = None
    address: Address = field(default_factory=lambda: Address("Main"))
    other: Address | None = None
    places: list[Address] = field(default_factory=list)
    tree: Tree | None = None
    data: bytes = b""
    anything: Any = None
    age: Annotated[int, msgspec.Meta(description="in years", ge=0)] = 1


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(description="who it is")
    nick: str | None = None
    home: dict[str, str] = {}


@dataclass
class Number:
    value: int


def toolbox() -> Service:
    """A service of every type, kind of stream and way to fail."""
    service = Service("toolbox", version="v2", description="Does what tests need")

    @service.endpoint
    async def everything(request: Everything) -> dict[str, Any]:
        """Give back what came."""
        return asdict(request)

    @service.endpoint
    async def person(request: Person) -> Person:
        return request

    @service.endpoint
    async def free(request: dict[str, Any]) -> dict[str, Any]:
        return request

    @service.endpoint
    async def nested(order: Nested) -> dict[str, Any]:
        return asdict(order)

    @service.endpoint
    async def nothing() -> None:
        """Take nothing, give nothing."""

    @service.endpoint
    async def fail(code: int, detail: str = "it went wrong") -> None:
        raise errors.make(code, "toolbox", detail)

    @service.endpoint
    async def burst() -> None:
        raise ZeroDivisionError("by nothing")

    @service.endpoint
    async def slow(seconds: float = 60.0) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @service.endpoint
    async def seen(context: Context) -> dict[str, str]:
        return dict(context.metadata)

    @service.endpoint
    async def exact() -> dict[str, Any]:
        return {"large": 2**63 - 1, "small": 0.1, "word": "żółw\u2028"}

    @service.endpoint(name="Greeter.Hello")
    async def hello(name: str = "World") -> str:
        """Greet with a handler of its own."""
        return f"Hello {name}"

    _bytes(service)
    return service


@dataclass
class Nested:
    """Two fields whose flags are alike: ``user_name`` and ``user_name_first``."""

    user: Address
    user_name: dict[str, str] = field(default_factory=dict)
    user_street_old: str = ""


def _bytes(service: Service) -> None:
    @service.endpoint
    async def reverse(data: bytes) -> bytes:
        """Bytes from behind."""
        return data[::-1]

    @service.endpoint
    async def sized(pieces: AsyncIterator[bytes]) -> int:
        return sum([len(piece) async for piece in pieces])

    @service.endpoint
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"\x00\xff", b"two\n"):
            yield piece


def streams() -> Service:
    """Streams that go on, fail, and end early."""
    service = Service("streams")

    @service.endpoint
    async def ticks(pause: float = 0.0, to: int = 10**9) -> AsyncIterator[Number]:
        """Count without an end."""
        for value in range(1, to + 1):
            yield Number(value)
            await asyncio.sleep(pause)

    @service.endpoint
    async def breaks() -> AsyncIterator[Number]:
        yield Number(1)
        raise errors.Conflict("streams", "broke after one")

    @service.endpoint
    async def total(numbers: AsyncIterator[Number]) -> Number:
        return Number(sum([number.value async for number in numbers]))

    @service.endpoint
    async def double(numbers: AsyncIterator[Number]) -> AsyncIterator[Number]:
        async for number in numbers:
            yield Number(number.value * 2)

    @service.endpoint
    async def first(numbers: AsyncIterator[Number]) -> Number:
        """Answer as soon as one has come."""
        async for number in numbers:
            return number
        raise errors.BadRequest("streams", "none came")

    return service


def ailing() -> Service:
    """A service that says it is not well."""
    service = Service("ailing")

    @service.endpoint
    async def call() -> str:
        return "still here"

    @service.health
    async def disk() -> None:
        raise OSError("disk \x1b[31mfull")

    return service
