"""Types that endpoints take and give, one of each kind."""

from __future__ import annotations

import dataclasses
from typing import Any, Generic, TypedDict, TypeVar

import msgspec
import pydantic

T = TypeVar("T")


@dataclasses.dataclass
class Plain:
    name: str
    times: int = 1


class Struct(msgspec.Struct):
    name: str
    times: int = 1


class Model(pydantic.BaseModel):
    name: str
    times: int = 1


class Typed(TypedDict):
    name: str
    times: int


class Page(msgspec.Struct, Generic[T]):
    items: list[T]


class Tree(msgspec.Struct):
    """Refers to itself."""

    value: int = 0
    below: list[Tree] = []


class Nested(pydantic.BaseModel):
    inner: Model
    others: list[Model] = []


KINDS: dict[str, Any] = {
    "dataclass": Plain,
    "struct": Struct,
    "pydantic": Model,
    "typed dict": Typed,
}


def dumped(value: Any) -> Any:
    """The same as plain JSON types."""
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    return msgspec.to_builtins(value)
