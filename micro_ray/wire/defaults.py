"""The defaults of decoded dataclasses.

msgspec makes a dataclass without its ``__init__`` and leaves a default that was not sent to the
class: the attribute reads well, but it is not in the instance, and encoding the instance leaves it
out. An answer that is the request would lose fields.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["filler"]

Fill = Callable[[Any], Any]


def filler(kind: Any) -> Fill | None:
    """What puts the defaults into the dataclasses of a decoded value of this type, and gives the
    value; None when no dataclass that the type can hold leaves any out."""
    return _fill if any(map(_leaves_out, _classes(kind, set()))) else None


def _classes(kind: Any, seen: set[Any]) -> set[Any]:
    """The classes with fields that a type is made of."""
    for part in typing.get_args(kind):
        _classes(part, seen)
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, type) and origin not in seen and _has_fields(origin):
        seen.add(origin)
        for hint in typing.get_type_hints(origin).values():
            _classes(hint, seen)
    return seen


def _has_fields(kind: type) -> bool:
    return (
        dataclasses.is_dataclass(kind)
        or issubclass(kind, msgspec.Struct)
        or typing.is_typeddict(kind)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


def _leaves_out(kind: Any) -> bool:
    return (
        dataclasses.is_dataclass(kind)
        and kind.__dictoffset__ != 0  # type: ignore[union-attr]  # every class has one
        and any(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind))
    )


def _fill(value: Any) -> Any:
    if isinstance(value, dict):
        for item in value.values():
            _fill(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            _fill(item)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _fill(getattr(value, name))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _fill_dataclass(value)
    return value


def _fill_dataclass(value: Any) -> None:
    have = getattr(value, "__dict__", None)
    for field in dataclasses.fields(value):
        if have is not None and field.name not in have and field.default is not dataclasses.MISSING:
            have[field.name] = field.default  # also where the class is frozen
        _fill(getattr(value, field.name, None))
