"""A service of a user, with what the platform's own have not: paths, methods, and types of every
kind."""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from micro_ray import Service

__all__ = ["shapes"]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    x: float
    y: float = 0.0
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=20)]
    points: list[Point]
    colour: Colour = Colour.RED
    size: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1
    corner: tuple[int, str] = (0, "")
    made: datetime.datetime | None = None
    key: uuid.UUID | None = None
    raw: bytes = b""
    inner: Shape | None = None
    tags: dict[str, int] = field(default_factory=dict)


def shapes() -> Service:
    service = Service("shapes")

    @service.endpoint
    async def draw(shape: Shape) -> Shape:
        return shape

    @service.endpoint(path="/shapes/{id}/points/{n}", method="GET")
    async def point(id: str, n: int, scale: float = 1.0, deep: bool = False) -> Point:
        return Point(x=n * scale, label=id if deep else None)

    @service.endpoint(path="/shapes/{id}", method="PUT,DELETE")
    async def put(
        id: int,
        colour: Colour = Colour.RED,
        tags: list[str] = [],  # noqa: B006 - copied by the struct, never changed
        mode: Literal[1, 2] = 1,
    ) -> dict[str, Any]:
        return {"id": id, "colour": colour, "tags": tags, "mode": mode}

    @service.endpoint
    async def many(points: AsyncIterator[Point]) -> int:
        return len([point async for point in points])

    @service.endpoint
    async def each(count: Annotated[int, msgspec.Meta(ge=0, le=5)]) -> AsyncIterator[Point]:
        for n in range(count):
            yield Point(x=n)

    @service.endpoint
    async def both(points: AsyncIterator[Point]) -> AsyncIterator[Shape]:
        async for point in points:
            yield Shape(name="one", points=[point])

    @service.endpoint
    async def raw(body: bytes) -> bytes:
        return body

    return service
