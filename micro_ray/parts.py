"""Values with tuples of many items, in parts that fit into messages. A value is a dataclass with a
field ``more``: it says that this is a part, and that another one follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

__all__ = ["cut", "joined"]

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode


def cut(whole: T, names: Sequence[str], size: int) -> Iterator[T]:
    """The value in parts with at most ``size`` bytes of items, as they are encoded, of the fields
    ``names``; a larger item goes alone. All but the last say ``more``."""
    bare: Any = replace(whole, **dict.fromkeys(names, ()), more=True)  # type: ignore[type-var]
    part: dict[str, list[Any]] = {name: [] for name in names}
    room = size
    for name in names:
        for item in getattr(whole, name):
            length = len(_encode(item))
            if length > room and room < size:
                yield _with(bare, part)
                part, room = {each: [] for each in names}, size
            part[name].append(item)
            room -= length
    yield replace(_with(bare, part), more=False)


def _with(bare: Any, part: dict[str, list[Any]]) -> Any:
    return replace(bare, **{name: tuple(items) for name, items in part.items()})


def joined(parts: Sequence[T], names: Sequence[str]) -> T:
    """The value whose parts these are, in order; what is in none of the fields ``names`` is that of
    the last."""
    if len(parts) == 1:
        return parts[0]
    items = {name: tuple(item for part in parts for item in getattr(part, name)) for name in names}
    last: Any = parts[-1]
    whole: T = replace(last, **items)
    return whole
